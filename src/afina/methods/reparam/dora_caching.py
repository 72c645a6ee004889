"""Norms of DoRA that are kept from call to call in evaluation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PUBLIC = ("DoraCaching",)


class DoraCaching:
    """In evaluation, keep the norms ||W + s · B A|| from call to call, until one of the three changes.

    Changes are seen by torch's version counters, so not those made through `.data`.

        with DoraCaching():
            model(inputs)

        DoraCaching()(enabled=True)  # from here on

    Args:
        enabled: whether to keep them inside the context.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.before: list[bool] = []

    def __call__(self, enabled: bool = True) -> None:
        _SWITCH.on = enabled

    def __enter__(self) -> None:
        self.before.append(_SWITCH.on)
        _SWITCH.on = self.enabled

    def __exit__(self, *_: object) -> None:
        _SWITCH.on = self.before.pop()


class _Switch:
    """Whether norms are kept, in this process."""

    on = False


_SWITCH = _Switch()


class KeptNorm:
    """What a norm was computed from (tensors; the scaling, their versions and places), and the norm; or nothing."""

    def __init__(self) -> None:
        self.found: tuple[tuple[Tensor, ...], tuple[float, ...], Tensor] | None = None

    def once(
        self, parts: tuple[Tensor, ...], scaling: float, training: bool, compute: Callable[[], Tensor]
    ) -> Tensor:  # fmt: skip
        """The norm of these tensors, computed or kept."""
        if not _SWITCH.on or training or torch.compiler.is_compiling() or any(t.is_inference() for t in parts):
            self.found = None
            return compute()
        now = (scaling, *(n for t in parts for n in (t._version, t.data_ptr())))
        kept = self.found
        if kept is None or kept[1] != now or any(a is not b for a, b in zip(kept[0], parts, strict=True)):
            self.found = kept = parts, now, compute()
        return kept[2]
