"""Runs that do not fit at once: a fleet after the other, on one base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import StoppedError
from ..recipe.sections import Recipe
from ..report.events import Reporter
from .fleet import Fleet, Trained, names
from .shared_base import SharedBase


def in_waves(
    recipes: Sequence[Recipe], groups: Sequence[Sequence[int]], reporter: Reporter, *, overwrite: bool, resume: bool
) -> list[Trained]:
    """What becomes of each run, in their order.

    Where a signal stops the runs of a group, those that waited end as stopped before they began.

    Args:
        groups: the places of the runs that are trained at the same time.
        resume: go on from the last checkpoints; a run that was waiting when the others were stopped begins.
    """
    called, base = names(recipes), SharedBase()
    there = [Path(recipe.output.dir).expanduser().exists() for recipe in recipes]
    again = [resume and (begun or not any(there)) for begun in there]
    out: dict[int, Trained] = {}
    for group in groups:
        stopped = next((one.error for one in out.values() if isinstance(one.error, StoppedError)), None)
        if stopped is not None:
            error = StoppedError("stopped before the run began: nothing is lost", fix="run it again",
                                 exit_code=stopped.exit_code)  # fmt: skip
            out |= {place: Trained(called[place], None, error, "", 0, 0) for place in group}
            continue
        fleet = Fleet(reporter, base, [called[place] for place in group])
        some = [recipes[place] for place in group]
        found = fleet.run(some, overwrite=overwrite, resume=[again[place] for place in group])
        out |= dict(zip(group, found, strict=True))
    return [out[place] for place in range(len(recipes))]
