"""What a search found, as plain values: where each candidate stands, which is best, and what was saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from ..evidence.prepare import Shared
from ..evidence.score import Standing, is_worse, standings, was_trained
from ..train.recipe.sections import Recipe
from ..train.recipe.yamlfile import dump
from .contender import Contender

_ENDS = ("done", "left", "failed")
"""In the order of tables."""

ALONE = "the only one left"
"""Why a candidate is not trained on that has won."""


def outcome(base: Recipe, shared: Shared, done: Sequence[Contender]) -> dict[str, Any]:
    """Of a search of one group."""
    seconds = sum(one.record.seconds for one in done)
    best, standing = standing_of(done)
    rows = [row(one, standing.get(one.name)) for one in done]
    rows.sort(key=lambda r: (_ENDS.index(r["status"]), r["trained"] is False, -r["steps"] / r["of"], _last(r)))
    chosen = next((one for one in done if one.name == best), None)
    as_good = [r["name"] for r in rows if r["to_best"] and not r["worse"] and r["trained"] is not False]
    made, whole = (sum(r[key] * r["rows_per_step"] for r in rows) for key in ("steps", "of"))
    return {
        "task": base.task, "base_model": base.model.path, "rows": rows, "best": best, "as_good": as_good,
        "best_recipe": dump(trainable_recipe(chosen, base)) if chosen is not None else None,
        "train_rows": shared.rows[2], "held_out_rows": shared.rows[3], "majority": shared.majority,
        "seed": base.training.seed,
        "saved": {"rows": made, "rows_of_all": whole, "share": 1 - made / whole if whole else 0.0,
                  "seconds": round(seconds, 1), "seconds_of_all": round(seconds * whole / made, 1) if made else 0.0},
        **shared.facts,
    }  # fmt: skip


def standing_of(done: Sequence[Contender]) -> tuple[str, dict[str, Standing]]:
    """The best of those that were trained to the end and whose training loss fell (or cannot be told to have), and how
    all that came to the end stand against it; no name where there is none."""
    ended = [one for one in done if one.record.status == "done"]
    trained = [one for one in ended if is_trained(one) is not False]
    if not trained:
        return "", {}
    losses = {one.name: {0: one.record.losses} for one in ended}
    return standings(losses, higher_is_better=False, among=[one.name for one in trained])


def is_trained(one: Contender) -> bool | None:
    """Whether its training loss fell by more than its noise; None where that cannot be told."""
    found = one.record.descent
    return was_trained([found["verdict"]]) if found else None


def row(one: Contender, standing: Standing | None) -> dict[str, Any]:
    """A candidate, for tables and pages."""
    record = one.record
    to_best = standing.to_best if standing else None
    return {
        "name": one.name, "choice": one.choice, "learning_rate": one.recipe.training.learning_rate,
        "method": one.recipe.method.type, "status": record.status, "reason": record.reason,
        "worse_than": record.worse_than,
        "steps": record.steps, "of": one.steps, "rows_per_step": one.rows_per_step,
        "rungs": [[step, fmean(losses)] for step, losses in record.rungs.values()],
        "loss": fmean(record.losses) if record.losses else None,
        "right": fmean(record.right) if record.right else None,
        "to_best": asdict(to_best) if to_best else None, "worse": is_worse(to_best, higher_is_better=False),
        "trained": is_trained(one), "trainable": record.trainable, "alone": record.alone,
        "curves": {"0": [list(point) for point in record.curve]},
    }  # fmt: skip


def _last(row: Mapping[str, Any]) -> float:
    """The last held-out loss; those without one come last."""
    if row["loss"] is not None:
        return float(row["loss"])
    return float(row["rungs"][-1][1]) if row["rungs"] else float("inf")


def trainable_recipe(one: Contender, base: Recipe) -> Recipe:
    """A candidate's recipe as `afina train` runs it: on all rows, and measured as the recipe says."""
    out = one.recipe.model_copy(deep=True)
    out.evaluation = base.evaluation.model_copy(deep=True)
    out.training.early_stopping = base.training.early_stopping
    return out
