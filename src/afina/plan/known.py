"""Numbers of tensors without data, as far as they follow from numbers that are known: integers and masks.

Tokens, the places of images among them, the sizes of images: what code asks for the numbers of, and what decides on
shapes, is computed from the batch's integers alone. They are few, so they are computed beside the tensors without data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

_FROM_NOTHING = ("arange", "full", "ones", "zeros", "scalar_tensor", "tril_indices", "triu_indices")
"""Operations that make a tensor of numbers alone."""
_MOST = 2**26
"""Numbers of a tensor that is still computed."""


class Known:
    """Which tensors' numbers are known, and what they are."""

    def __init__(self) -> None:
        self._found: Any = WeakIdKeyDictionary()

    def tell(self, tensor: Tensor, numbers: Tensor) -> None:
        """The numbers of a tensor; those of floating-point ones are not kept."""
        if not (numbers.is_floating_point() or numbers.is_complex()):
            self._found[tensor] = numbers

    def of(self, tensor: Tensor) -> Tensor | None:
        """A tensor's numbers, if they are known."""
        if tensor in self._found:
            return self._found[tensor]  # type: ignore[no-any-return]
        return tensor if type(tensor) is Tensor and tensor.device.type == "cpu" and _counts(tensor) else None

    def computed(self, func: Any, args: Any, kwargs: Any) -> list[Tensor] | None:
        """What an operation gives, if it takes and gives known numbers only; what it changes is changed here too."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = func._schema.name.rpartition("::")[2]
        if torch.Tag.nondeterministic_seeded in func.tags or (not inputs and name not in _FROM_NOTHING):
            return None
        if any(tensor.numel() > _MOST or self.of(tensor) is None for tensor in inputs):
            self._forget(func, args)
            return None
        with _disable_current_modes():
            real = tree_map(lambda leaf: self.of(leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
            kept = {key: value for key, value in real[1].items() if key not in ("device", "pin_memory")}
            if not inputs and not _is_small(args, kwargs):
                return None
            out = func(*real[0], **kept)
        return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]

    def keep(self, outputs: Sequence[Tensor], real: Sequence[Tensor]) -> None:
        """Tell the numbers of all outputs."""
        for tensor, numbers in zip(outputs, real, strict=True):
            self.tell(tensor, numbers)

    def _forget(self, func: Any, args: Any) -> None:
        """What is changed by something unknown is not known any more."""
        for given, argument in zip(args, func._schema.arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for leaf in tree_leaves(given):
                    if isinstance(leaf, Tensor):
                        self._found.pop(leaf, None)


def _counts(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _is_small(args: Any, kwargs: Any) -> bool:
    """Whether what is made of nothing has few numbers, none of them floating-point."""
    dtype = kwargs.get("dtype")
    given = [leaf for leaf in tree_leaves(args) if isinstance(leaf, (int, float)) and not isinstance(leaf, bool)]
    if dtype is None:
        return bool(given) and all(isinstance(leaf, int) for leaf in given) and max(given) <= _MOST
    if dtype.is_floating_point or dtype.is_complex:
        return False
    size = 1
    for leaf in tree_leaves(args[0]) if args else []:
        size *= max(1, int(leaf))
    return size <= _MOST
