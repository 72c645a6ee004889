"""Stacked experts with a low-rank update that is never formed: products with W + L R run as x W + (x L) R.

A mixture's module reads its experts in its own way: a grouped product over rows that are sorted by expert, a batched
product over the chosen experts of every row, or a loop over experts. Whatever it does, this tensor gives the products
in two thin steps, and is the sum W + L R for everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import NotAWeight

_BYTES = 16
"""What strides of grouped products are multiples of."""


class UpdatedExperts(Tensor):
    """W + L R, with W (..., m, n), L (..., m, r) and R (..., r, n)."""

    frozen: Tensor
    left: Tensor
    right: Tensor

    @staticmethod
    def __new__(cls: type[UpdatedExperts], frozen: Tensor, left: Tensor, right: Tensor) -> UpdatedExperts:
        out: UpdatedExperts = Tensor._make_wrapper_subclass(cls, frozen.shape, dtype=frozen.dtype, device=frozen.device)
        out.frozen, out.left, out.right = frozen, left, right
        return out

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in _FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **given)
        rule = _RULES.get(func)
        made = NotImplemented if rule is None else rule(func, *args, **given)
        if made is not NotImplemented:
            return made
        return func(*map(_summed, args), **{name: _summed(value) for name, value in given.items()})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Below everything that carries gradients.

        Raises:
            NotAWeight: it must not come here.
        """
        raise NotAWeight("an operation that adapted experts do not know", where=str(func))

    def same(self, change: Callable[[Tensor], Tensor]) -> UpdatedExperts:
        """With all parts changed alike."""
        return UpdatedExperts(change(self.frozen), change(self.left), change(self.right))


def updated(weight: Tensor, left: Tensor, right: Tensor) -> UpdatedExperts:
    """Experts (E, m, n) with the update L R, in the weight's dtype; zeros fill ranks up to what products take."""
    left, right = left.to(weight.dtype), right.to(weight.dtype)
    missing = -left.shape[-1] % max(1, _BYTES // weight.element_size())
    return UpdatedExperts(weight, F.pad(left, (0, missing)).contiguous(), F.pad(right, (0, 0, 0, missing)).contiguous())


def _summed(value: Any) -> Any:
    return value.frozen + value.left @ value.right if isinstance(value, UpdatedExperts) else value


def _turned(func: Any, x: UpdatedExperts, *dims: int) -> Any:
    pair = tuple(d % x.frozen.dim() for d in dims) or (x.frozen.dim() - 2, x.frozen.dim() - 1)
    if sorted(pair) != [x.frozen.dim() - 2, x.frozen.dim() - 1]:
        return NotImplemented
    return UpdatedExperts(x.frozen.mT, x.right.mT, x.left.mT)


def _chosen(func: Any, x: UpdatedExperts, key: Any) -> Any:
    """Some experts, or one; nothing within an expert."""
    whole = isinstance(key, int) or (isinstance(key, Tensor) and key.dtype != torch.bool and key.dim() <= 1)
    return x.same(lambda part: part[key]) if whole and x.frozen.dim() == 3 else NotImplemented


def _cast(func: Any, x: UpdatedExperts, *args: Any, **kwargs: Any) -> Any:
    return x.same(lambda part: part.to(*args, **kwargs))


def _product(func: Any, a: Any, b: Any, **kwargs: Any) -> Any:
    """A matrix product with one of these in it; `kwargs` are those of grouped products."""
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    if kwargs.keys() - {"offs"} or (isinstance(a, UpdatedExperts) and isinstance(b, UpdatedExperts)):
        return NotImplemented
    if isinstance(b, UpdatedExperts):
        return func(a, b.frozen, **kwargs) + func(func(a, b.left, **kwargs), b.right, **kwargs)
    return func(a.frozen, b, **kwargs) + func(a.left, func(a.right, b, **kwargs), **kwargs)


def _linear(func: Any, x: Any, weight: Any, bias: Tensor | None = None) -> Any:
    if not isinstance(weight, UpdatedExperts):
        return NotImplemented
    return F.linear(x, weight.frozen, bias) + F.linear(F.linear(x, weight.right), weight.left)


_FACTS = frozenset({
    Tensor.shape.__get__, Tensor.dtype.__get__, Tensor.device.__get__, Tensor.ndim.__get__, Tensor.layout.__get__,  # type: ignore[attr-defined]
    Tensor.dim, Tensor.size, Tensor.numel, Tensor.element_size, Tensor.is_floating_point, Tensor.is_complex,
    Tensor.__len__,
})  # fmt: skip
"""What is that of W."""
_RULES: Mapping[Any, Callable[..., Any]] = {
    **dict.fromkeys((Tensor.transpose, torch.transpose, Tensor.mT.__get__), _turned),  # type: ignore[attr-defined]
    **dict.fromkeys((Tensor.to,), _cast),
    **dict.fromkeys((Tensor.__getitem__,), _chosen),
    **dict.fromkeys((F.linear,), _linear),
    **dict.fromkeys((torch.bmm, Tensor.bmm, torch.matmul, Tensor.matmul, Tensor.__matmul__), _product),
    **dict.fromkeys([f for module, name in ((F, "grouped_mm"), (torch, "_grouped_mm"))
                     if (f := getattr(module, name, None)) is not None], _product),
}  # fmt: skip
