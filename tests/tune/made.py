"""Candidates of a search with what became of them, without running anything."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from afina.tune.contender import Contender, Record
from afina.tune.outcome import outcome


def contender(recipe: Any, name: str, rate: float, **record: Any) -> Contender:
    own = recipe.model_copy(deep=True)
    own.training.learning_rate = rate
    return Contender(name, {"rate": str(rate)}, own, 80, record=Record(**record))


def ended(mean: float, *, verdict: str = "fell", **record: Any) -> dict[str, Any]:
    """What became of one that was trained to the end; the rows are as hard for all."""
    losses = [mean + (i % 7) / 10 for i in range(70)]
    rungs = {0: (20, [loss + 1 for loss in losses]), 1: (40, [loss + 0.5 for loss in losses])}
    return {"status": "done", "steps": 80, "losses": losses, "rungs": rungs, "descent": {"verdict": verdict},
            "curve": [(step, 3.0 / step) for step in range(1, 81)], "trainable": 100, **record}  # fmt: skip


def found(recipe: Any, *more: Contender, **changes: Any) -> dict[str, Any]:
    """The result of a search with a best candidate, one that left and one that failed."""
    done = [
        contender(recipe, "rate=0.01", 0.01, **ended(0.5, right=[1.0] * 70, seconds=60.0)),
        contender(recipe, "rate=<b>1</b>", 1.0, status="failed", reason="the loss is not finite", steps=3),
        contender(recipe, "rate=1e-05", 1e-5, status="left", reason="significantly worse than rate=0.01 (+1.0 [0.9, "
                  "1.1])", steps=20, rungs={0: (20, [2.0] * 70)}, descent={"verdict": "flat"}, trainable=100,
                  curve=[(step, 2.0) for step in range(1, 21)], alone="it draws random numbers"),
        *more,
    ]  # fmt: skip
    facts = {"versions": {"afina": "0.1.0"}, "machine": {"processor": "CPU", "cores": 2, "threads": 1, "gpu": None,
                                                         "system": "Linux x86_64"}}  # fmt: skip
    shared: Any = SimpleNamespace(rows=(320, 400, 250, 70), majority=0.7, facts=facts)
    asked = {"recipe": "tweets <script>", "overrides": [], "space": ["rate"], "sampled": False}
    return {**asked, **outcome(recipe, shared, done), **changes}
