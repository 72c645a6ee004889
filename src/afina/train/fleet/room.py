"""Whether several runs share passes, and how many fit a device at once, by the plan of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...devices.memory_use import free_bytes
from ...devices.place import place
from ...methods.baselines.full import FullConfig
from ..loop.plans.base_shares import Share, groups, share, together
from ..loop.plans.forecast import Forecast, Target, forecast
from ..loop.plans.rehearsal import Untold
from ..loop.plans.setting import setting_of
from ..recipe.sections import Recipe
from ..recipe.settings import method_config
from ..report.events import Reporter

_ALIKE: dict[str, Any] = {
    "output": True, "evaluation": True,
    "training": {"seed", "learning_rate", "scheduler", "weight_decay", "max_steps", "save_steps", "keep_checkpoints"},
}  # fmt: skip
"""Keys of a recipe that no step's memory depends on."""


IN_TURN = "on a processor passes of their own are faster"


def in_turn(device: str, wanted: bool | None = None) -> str:
    """Why runs on one base have passes of their own; empty where those that can share them.

    Args:
        wanted: whether passes are to be shared; None where nothing is said.
    """
    if wanted is not None:
        return "" if wanted else "passes are not to be shared"
    return IN_TURN if place(device).kind == "cpu" else ""


def planned_bytes(recipes: Sequence[Recipe], *, in_turn: bool = False) -> int:
    """What runs on one base take at once.

    Args:
        in_turn: each has passes of its own while the others wait.

    Raises:
        Untold: what one of them takes cannot be told.
        AfinaError: what would stop a run at its beginning.
    """
    return together(_shares(recipes, turns=in_turn))


def waves(recipes: Sequence[Recipe], reporter: Reporter) -> list[list[int]]:
    """Which runs are trained at the same time, in their order: as many as fit, the rest after them.

    Where one of them cannot be planned, all are trained at once, which is said.
    """
    everyone = [*range(len(recipes))]
    free = free_bytes(place(recipes[0].model.device).name) if len(recipes) > 1 else None
    if free is None:
        return [everyone]
    try:
        shares = _shares(recipes)
    except Untold as error:
        reporter.note(f"all {len(recipes)} runs are trained at once: {error.what} ({error.fix or error.got})")
        return [everyone]
    out = groups(shares, free)
    if len(out) > 1:
        reporter.note(f"{len(out[0])} of {len(recipes)} runs fit at once, the others wait (at_once=)")
    return out


def _shares(recipes: Sequence[Recipe], *, turns: bool = False) -> list[Share]:
    """What each is among the others. Runs that take as much as each other are planned once."""
    found: dict[str, Forecast] = {}
    for recipe in recipes:
        if (key := _key(recipe)) not in found:
            target = Target(place(recipe.model.device).name, place(recipe.model.device), None, None)
            found[key] = forecast(setting_of(recipe, Reporter()), target, timed=False)
    return [share(found[_key(r)], whole=_whole(r), in_turn=turns) for r in recipes]


def _key(recipe: Recipe) -> str:
    return recipe.model_dump_json(exclude=_ALIKE)


def _whole(recipe: Recipe) -> bool:
    return isinstance(method_config(recipe), FullConfig)
