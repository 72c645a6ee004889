"""Runs that are not trained at the same time: a fleet after the other, on one base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...devices.memory_use import trim
from ...errors import AfinaError, StoppedError
from ..loop.begin import prepared
from ..loop.claimed import lengthened
from ..loop.run import Result
from ..recipe.resuming import check_resumable
from ..recipe.sections import Recipe
from ..recipe.settings import load_recipe
from ..report.checkpoints import checkpoints, is_sealed
from ..report.events import Reporter
from ..report.output import RECIPE_NAME, REPORT
from ..report.scores import Scores
from .fleet import Fleet, Trained, names, not_begun
from .shared_base import SharedBase


def in_waves(
    recipes: Sequence[Recipe], groups: Sequence[Sequence[int]], reporter: Reporter, *, overwrite: bool, resume: bool,
    alone: str = "",
) -> list[Trained]:  # fmt: skip
    """What becomes of each run, in their order.

    Where a signal stops the runs of a group, those that waited end as stopped before they began.

    Args:
        groups: the places of the runs that are trained at the same time.
        resume: go on from the last checkpoints; a run that had none when the others were stopped begins, and one that
            had ended is as it was.
        alone: why all have passes of their own.
    """
    called, base = names(recipes), SharedBase()
    there = [Path(recipe.output.dir).expanduser() for recipe in recipes]
    before = any(folder.exists() for folder in there)
    again = [resume and (overwrite or not before or any(map(is_sealed, checkpoints(folder)))) for folder in there]
    out: dict[int, Trained] = {}
    if resume and not overwrite:
        out = {place: one for place, recipe in enumerate(recipes) if (one := _ended(recipe, called[place], reporter))}
    for group in ([place for place in group if place not in out] for group in groups):
        stopped = next((one.error for one in out.values() if isinstance(one.error, StoppedError)), None)
        if stopped is not None:
            error = not_begun(stopped.exit_code)
            out |= {place: Trained(called[place], None, error, "", 0, 0) for place in group}
        elif group:
            fleet = Fleet(reporter, base, [called[place] for place in group], alone)
            some = [recipes[place] for place in group]
            found = fleet.run(some, overwrite=overwrite, resume=[again[place] for place in group])
            out |= dict(zip(group, found, strict=True))
            trim()
    return [out[place] for place in range(len(recipes))]


def _ended(recipe: Recipe, name: str, reporter: Reporter) -> Trained | None:
    """What a run left that had ended before the others were stopped; None of one that goes on or begins."""
    folder = Path(recipe.output.dir).expanduser().absolute()
    try:
        if not (folder / REPORT).is_file() or lengthened(recipe):
            return None
        former, (now, _, _) = load_recipe(str(folder / RECIPE_NAME)), prepared(recipe, Reporter())
        if recipe.model.dtype == "auto":
            now.model.dtype = former.model.dtype
        check_resumable(former, now, reporter)
    except AfinaError as error:
        return Trained(name, None, error, "", 0, 0)
    found = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    before, after = (Scores.from_dict(found[key]) if found[key] else None for key in ("before", "after"))
    reporter.note(f"{name}: had ended, and is as it was")
    return Trained(name, Result(folder, found, before, after), None, "", 0, 0)
