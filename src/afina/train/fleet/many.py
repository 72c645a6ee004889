"""`train_many`; what it takes is imported when it is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..recipe.sections import Recipe
    from ..report.events import Reporter
    from .fleet import Trained


def train_many(
    recipes: Sequence[Recipe], reporter: Reporter | None = None, *, overwrite: bool = False, resume: bool = False,
    at_once: int | None = None,
) -> list[Trained]:  # fmt: skip
    """Train several recipes on one base; each leaves in its own folder what `afina train` leaves there.

    Args:
        recipes: with the same `task` and `model`, each with an `output.dir` of its own. Methods, ranks, rates, seeds,
            schedules, lengths and data may differ. `afina.train.recipe.settings.load_recipe` reads one.
        reporter: hears what all have to say, with their names.
        overwrite: replace what former runs left in the folders.
        resume: go on from the last checkpoint of each; those that had waited and never began, begin.
        at_once: how many share passes at the same time, while the others wait. Without it as many as fit by their plan
            on a GPU, and one on a processor, where sharing gains nothing.

    Returns:
        What became of each, in their order. One that fails leaves, and the others go on.

    Raises:
        RecipeError: they have no base in common, or share a folder, or `at_once` is below 1.
    """
    from ...errors import RecipeError
    from ..report.events import Reporter
    from .fleet import check
    from .room import in_turn, waves
    from .waiting import in_waves

    check(recipes)
    if at_once is not None and at_once < 1:
        raise RecipeError("too small", where="at_once", got=at_once, expected=">= 1")
    reporter = reporter or Reporter()
    alone = "" if at_once else in_turn(recipes[0].model.device)
    if alone:
        reporter.note(f"{len(recipes)} runs on one base, one after the other: {alone} (at_once=)")
        at_once = 1
    if at_once is None:
        groups = waves(recipes, reporter)
    else:
        groups = [[*range(len(recipes))][i : i + at_once] for i in range(0, len(recipes), at_once)]
    return in_waves(recipes, groups, reporter, overwrite=overwrite, resume=resume, alone=alone)
