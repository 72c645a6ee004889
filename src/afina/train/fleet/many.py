"""`train_many`; what it takes is imported when it is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..recipe.sections import Recipe
    from ..report.events import Reporter
    from .fleet import Trained


def train_many(
    recipes: Sequence[Recipe], reporter: Reporter | None = None, *, overwrite: bool = False, resume: bool = False
) -> list[Trained]:
    """Train several recipes on one base at once; each leaves in its own folder what `afina train` leaves there.

    Args:
        recipes: with the same `task` and `model`, each with an `output.dir` of its own. Methods, ranks, rates, seeds,
            schedules, lengths and data may differ. `afina.train.recipe.settings.load_recipe` reads one.
        reporter: hears what all have to say, with their names.
        overwrite: replace what former runs left in the folders.
        resume: go on from the last checkpoint of each.

    Returns:
        What became of each, in their order. One that fails leaves, and the others go on.

    Raises:
        RecipeError: they have no base in common, or share a folder.
    """
    from ..report.events import Reporter
    from .fleet import Fleet, check

    check(recipes)
    return Fleet(reporter or Reporter()).run(recipes, overwrite=overwrite, resume=[resume] * len(recipes))
