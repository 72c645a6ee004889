"""The proof: held-out loss, and accuracy with its interval and the majority's share beside it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from .data import Data
from .events import Progress, Reporter
from .generate import answers, longest_label
from .labels import is_right, label_of, majority_share, task_numbers
from .prompts import Prompter
from .recipe import Recipe

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Scores:
    """What was measured on the held-out rows.

    Attributes:
        loss: mean held-out loss.
        rows: number of rows.
        accuracy: share of right answers, or None; a language model's greedy answer must be exactly the label
            (`labels.is_right`).
        low, high: its Wilson 95 % interval.
        majority: accuracy of always giving the commonest label.
        samples: a few answers as (prompt, expected, got).
    """

    loss: float
    rows: int
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    majority: float | None = None
    samples: tuple[tuple[str, str, str], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values; samples as objects."""
        samples = [{"prompt": p, "expected": e, "got": g} for p, e, g in self.samples]
        return {**asdict(self), "samples": samples}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scores:
        """The scores that `as_dict` gave."""
        samples = tuple((s["prompt"], s["expected"], s["got"]) for s in values["samples"])
        return cls(**{**values, "samples": samples})


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (E. B. Wilson, 1927)."""
    if total == 0:
        return 0.0, 1.0
    p, z2 = right / total, _Z95**2
    middle, scale = p + z2 / (2 * total), 1 + z2 / total
    half = _Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def evaluate(recipe: Recipe, trainer: Any, data: Data, prompter: Prompter, reporter: Reporter, stage: str) -> Scores:
    """Measure the trainer's model on the held-out rows.

    Raises:
        NumericError: the loss is not finite.
    """
    assert data.held_out is not None
    assert data.split.held_out is not None
    measured = trainer.evaluate(data.held_out)
    loss, rows = float(measured["eval_loss"]), data.split.held_out
    if data.labels is None:
        return Scores(loss, len(data.held_out))
    column = recipe.data.label_column
    expected = [label_of(rows, i, column, data.labels) for i in range(len(rows))]
    if recipe.task == "sequence_classification":
        right = round(float(measured["eval_accuracy"]) * len(rows))
        return _scored(loss, right, expected)
    kind = prompter.resolved_format(rows)
    prompts = [prompter.prompt(rows, i, kind) for i in range(len(rows))]
    got = answers(
        trainer.model,
        prompter,
        prompts,
        max_new_tokens=recipe.evaluation.max_new_tokens or longest_label(prompter, data.labels),
        batch_size=recipe.evaluation.batch_size,
        tasks=task_numbers(rows, recipe.data.task_column),
        progress=lambda done: reporter.progress(Progress(f"answering ({stage})", done, len(prompts))),
    )
    right = sum(is_right(g, e, data.labels) for g, e in zip(got, expected, strict=True))
    return _scored(loss, right, expected, tuple(zip(prompts[:3], expected[:3], got[:3], strict=True)))


def _scored(loss: float, right: int, expected: list[str], samples: tuple[tuple[str, str, str], ...] = ()) -> Scores:
    low, high = wilson(right, len(expected))
    return Scores(loss, len(expected), right / len(expected), low, high, majority_share(expected), samples)
