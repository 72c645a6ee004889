"""What torch may be asked for while an adapter is built for a file: sizes that the file and the model account for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import CheckpointError, ConfigError

SMALL = 2_000_000
"""Elements of a tensor that any config may ask for."""
MANY = 8_000_000
"""Elements that it may ask for in all."""
HELD = 64_000_000
"""Numbers that a file may have whatever the model: X-LoRA's classifier is larger than a small model."""
LARGEST = 2**48
"""Of a tensor without memory, which is only compared."""
_RANGES = frozenset({torch.arange, torch.linspace})
_FACTORIES = frozenset({
    torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.randperm, torch.eye,
    *_RANGES, Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.repeat,
})  # fmt: skip


class AllocationLimit(TorchFunctionMode):
    """Inside it, a config's numbers cannot ask for more memory than goes with the model and the file.

    Args:
        model: the base.
        file: name -> shape of the tensors in the file.

    Raises:
        CheckpointError: the file has far more numbers than the model.
        ConfigError: a tensor of a negative size, or a larger one, is asked for.
    """

    def __init__(self, model: nn.Module, file: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        sizes = [int(getattr(p, "ds_numel", p.numel())) for p in model.parameters()]
        held = sum(math.prod(shape) for shape in file.values())
        # A quantised model has up to eight numbers in one.
        if held > 16 * sum(sizes) + HELD:
            raise CheckpointError(
                "the file has far more numbers than the model", got=held, expected=f"{sum(sizes)} here"
            )
        self.each = max(SMALL, 4 * max(sizes, default=0), 2 * held)
        self.left = MANY + 4 * sum(sizes) + 4 * held

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES:
            self._check(_asked(func, args, kwargs), kwargs.get("device"))
        return func(*args, **kwargs)

    def _check(self, sizes: list[int], device: Any) -> None:
        on_meta = device is not None and torch.device(device).type == "meta"
        count = math.prod(sizes)
        if min(sizes, default=0) < 0 or count > (LARGEST if on_meta else min(self.each, self.left)):
            raise ConfigError("its numbers ask for a tensor that neither the model nor the file accounts for",
                              got=f"shape {tuple(sizes)}", expected=f"at most {self.each} numbers")  # fmt: skip
        self.left -= 0 if on_meta else count


def _asked(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[int]:
    """The shape that a factory is asked for; of a range, its length."""
    given = [a for a in args if not isinstance(a, Tensor)]
    shapes = [s for s in (kwargs.get("size"), *given) if isinstance(s, (list, tuple))]
    numbers = shapes[0] if shapes else [n for n in given if isinstance(n, int) and not isinstance(n, bool)]
    sizes = [int(n) for n in numbers]
    if func in _RANGES:
        return [max(map(abs, sizes), default=0)]
    return sizes * 2 if func is torch.eye and len(sizes) == 1 else sizes
