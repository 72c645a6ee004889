"""What a step computes: products by their shapes, bytes of all else, starts of operations."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

FAR = 8 * 2**20
"""Bytes from which a tensor is taken to leave the caches before it is used again."""


class Product(NamedTuple):
    """A matrix product of `matrices` times (rows, inner) with (inner, columns)."""

    dtype: torch.dtype
    matrices: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Its floating-point operations."""
        return 2 * self.matrices * self.rows * self.inner * self.columns


@dataclass
class Work:
    """What a step computes.

    Attributes:
        products: how often each is made.
        near, far: bytes that all other operations read and write, of tensors below `FAR` and of larger ones.
        calls: operations, views not counted.
    """

    products: Counter[Product] = field(default_factory=Counter)
    near: int = 0
    far: int = 0
    calls: int = 0

    def move(self, sizes: list[int]) -> None:
        """Bytes of tensors that an operation reads or writes."""
        self.far += sum(size for size in sizes if size >= FAR)
        self.near += sum(size for size in sizes if size < FAR)

    def __add__(self, other: Work) -> Work:
        return Work(self.products + other.products, self.near + other.near, self.far + other.far,
                    self.calls + other.calls)  # fmt: skip

    def __mul__(self, times: float) -> Work:
        """So many times the work, to whole numbers."""
        products = Counter({product: round(count * times) for product, count in self.products.items()})
        return Work(products, round(self.near * times), round(self.far * times), round(self.calls * times))

    @property
    def flops(self) -> int:
        """Of all products."""
        return sum(product.flops * times for product, times in self.products.items())
