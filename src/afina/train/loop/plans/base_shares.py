"""What several runs on one base take together, by the plan of each: the one way in which `tune`, `train_many` and
`afina plan` count them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .forecast import Forecast

PARTS = 3
"""Tensors of the widest size that a run adds to a shared pass while it lasts: of its rows' part and of all together."""
MORE = 20 * 2**20
"""Bytes that a processor's libraries take of passes that are shared (measured: 13 to 24 MiB): products of other shapes,
on more threads."""
THREADS = 32 * 2**20
"""Bytes that they take where runs on threads of their own take turns (measured: 25 to 40 MiB, from one time to the
next)."""
WAITING = ("weights", "adapters", "optimizer")
"""Parts that a run which waits for its turn keeps, of the weights those that are its own."""
OBJECTS = 2**20
"""Bytes of the modules, the trainer and the rows of one that waits (measured on ten layers)."""


@dataclass(frozen=True)
class Share:
    """A run among others, in bytes.

    Attributes:
        alone: what it takes with nobody beside it.
        common: what there is of it once for all runs on the base: weights, libraries, what reads rows and draws.
        own: what it adds to that, as long as it is among them.
        working: what it takes beside that while its turn is, where passes are not shared.
    """

    alone: int
    common: int
    own: int
    working: int = 0


def share(found: Forecast, *, whole: bool = False, in_turn: bool = False) -> Share:
    """What a run is among others.

    Args:
        whole: it trains the base, and has weights of its own.
        in_turn: each has passes of its own while the others wait.
    """
    peak, rehearsal = found.peak, found.rehearsal
    weights, libraries = peak.parts["weights"], peak.parts.get("libraries", 0)
    beside = found.bytes - peak.bytes
    common = weights + beside + libraries + ((THREADS if in_turn else MORE) if libraries else 0)
    if in_turn:
        own = sum(peak.parts.get(part, 0) for part in WAITING) - (0 if whole else weights)
        working = peak.bytes - libraries - own - (0 if whole else weights)
        return Share(found.bytes, common, own + OBJECTS, working)
    kept = (e.size for e in rehearsal.events if e.step and rehearsal.parts[e.key] == "activations")
    own = peak.bytes - libraries - (0 if whole else weights) + PARTS * max(kept, default=0)
    return Share(found.bytes, common, own)


def together(shares: Sequence[Share]) -> int:
    """Bytes of all at once."""
    if len(shares) == 1:
        return shares[0].alone
    once = max(one.common for one in shares) + max(one.working for one in shares)
    return once + sum(one.own for one in shares)


def groups(shares: Sequence[Share], free: int) -> list[list[int]]:
    """The places of runs in groups, in order, each with as many as `free` bytes hold, at least one."""
    out: list[list[int]] = []
    for place, one in enumerate(shares):
        if out and together([*(shares[other] for other in out[-1]), one]) <= free:
            out[-1].append(place)
        else:
            out.append([place])
    return out


def at_once(found: Forecast, free: int, *, in_turn: bool = False) -> int:
    """How many such runs fit in so many bytes, at least one."""
    one = share(found, in_turn=in_turn)
    return max(1, (free - one.common - one.working) // max(one.own, 1))
