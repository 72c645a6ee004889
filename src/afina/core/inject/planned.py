"""Adapters that were built but not yet put, and which of two at one place stays."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ...errors import TargetError
from ..hosts.adapter import Adapter
from ..hosts.host import Host
from ..hosts.replacement import Tied
from .slots import Slot


@dataclass
class Planned:
    """One adapter that was built but not yet put."""

    slot: Slot
    host: Host
    adapter: Adapter | None
    bias: nn.Parameter | None = None


def part_places(first: list[Planned], more: list[Planned], tying: bool) -> None:
    """Of two parts of one config at one place, take out the one that gives way.

    Args:
        tying: whether embeddings that share a weight have to stay alike.

    Raises:
        TargetError: neither gives way.
    """
    for item in [p for p in more if p.adapter is not None]:
        mine = next((p for p in first if p.adapter is not None and p.slot.name == item.slot.name), None)
        if mine is not None:
            gone = _giving_way(mine, item, tying)
            (first if gone is mine else more).remove(gone)


def _giving_way(one: Planned, other: Planned, tying: bool) -> Planned:
    """What follows an embedding gives way to what was asked for there, if that says anything else."""
    follows = next((p for p in (one, other) if isinstance(p.adapter, Tied)), None)
    own = other if follows is one else one
    if follows is None or own.adapter is None or isinstance(own.adapter, Tied):
        raise TargetError("two parts of one config adapt the same module", where=one.slot.name)
    assert isinstance(follows.adapter, Tied)
    if follows.adapter.says_the_same(own.adapter):
        return own
    if tying:
        raise TargetError("embeddings that are to stay tied are adapted in different ways", where=one.slot.name,
                          fix="ask for the same on both, or set ensure_weight_tying=False")  # fmt: skip
    return follows
