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

_MOST = 2**22
"""Numbers of a tensor that are still computed: tokens and what is made of them one by one, not masks of pairs of them,
for which a run of long rows would take real memory and time."""


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

    def computed(
        self, func: Any, args: Any, kwargs: Any, outputs: Sequence[Tensor] | None = None
    ) -> list[Tensor] | None:
        """What an operation gives, if it takes and gives known numbers only; what it changes is changed here too.

        Args:
            outputs: of the same operation on tensors without data; None where numbers decide on their shapes.
        """
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not self._follows(func, inputs, outputs):
            self._forget(func, args)
            return None
        kept = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
        with _disable_current_modes():
            real = tree_map(lambda leaf: self.of(leaf) if isinstance(leaf, Tensor) else leaf, (args, kept))
            out = func(*real[0], **real[1])
        return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]

    def _follows(self, func: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None) -> bool:
        """Whether an operation's result follows from what is known, and is small."""
        if torch.Tag.nondeterministic_seeded in func.tags or "empty" in func._schema.name or not (inputs or outputs):
            return False
        return all(_counts(one) and one.numel() <= _MOST for one in outputs or ()) and all(
            self.of(one) is not None for one in inputs
        )

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
