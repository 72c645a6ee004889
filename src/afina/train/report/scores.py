"""What was measured of a model on held-out rows, in numbers and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Scores:
    """What was measured.

    Attributes:
        loss: mean held-out loss; None where rows were only predicted.
        rows: number of rows.
        accuracy: share of right answers, or None; a language model's greedy answer must be exactly the label
            (`labels.is_right`).
        low, high: its Wilson 95 % interval, where the rows are independent of each other.
        majority: accuracy of always giving the commonest label.
        samples: a few answers as (prompt, expected, got).
        f1: micro F1 of entities, or mean F1 over the words of answers.
        f1_of: which of them.
        sets: the loss by data set, where the held-out rows are of several.
        metric: what `accuracy` is called.
        confusion: label -> answer -> how many rows of the label got it, where rows have labels and answers are some.
        wrong: some of the rows whose answer is wrong, as `samples` are.
        losses: of each row, where they are kept to be compared.
        lowered: by how much the loss of a row is lower than before, in the mean, and the 95 % interval of that.
        word_errors: words that are wrong, missing or too many, in shares of the words that were said.
    """

    loss: float | None
    rows: int
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    majority: float | None = None
    samples: tuple[tuple[str, str, str], ...] = ()
    f1: float | None = None
    metric: str = "accuracy"
    f1_of: str = "entity"
    sets: dict[str, float] | None = None
    confusion: dict[str, dict[str, int]] | None = None
    wrong: tuple[tuple[str, str, str], ...] = ()
    word_errors: float | None = None
    losses: tuple[float, ...] = ()
    lowered: tuple[float, float, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values; samples as objects."""
        lists = {"samples": self.samples, "wrong": self.wrong}
        told = {key: [{"prompt": p, "expected": e, "got": g} for p, e, g in rows] for key, rows in lists.items()}
        plain = {"losses": list(self.losses), "lowered": None if self.lowered is None else list(self.lowered)}
        return {**asdict(self), **plain, **told}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scores:
        """The scores that `as_dict` gave."""
        lists = {key: tuple((s["prompt"], s["expected"], s["got"]) for s in values.get(key, ()))
                 for key in ("samples", "wrong")}  # fmt: skip
        known = {"losses": tuple(values.get("losses", ())),
                 "lowered": tuple(values["lowered"]) if values.get("lowered") else None}  # fmt: skip
        return cls(**{**values, **lists, **known})

    @property
    def beside(self) -> list[str]:
        """What the accuracy must be read with, in words."""
        out = [] if self.low is None else [f"95 % interval {self.low:.3f} to {self.high:.3f}"]
        return out if self.majority is None else [*out, f"majority {self.majority:.3f}"]

    def __str__(self) -> str:
        """The scores in words."""
        parts = []
        if self.accuracy is not None:
            beside = f" ({'; '.join(self.beside)})" if self.beside else ""
            parts.append(f"{self.metric} {self.accuracy:.3f}{beside}")
        if self.f1 is not None:
            parts.append(f"{self.f1_of} F1 {self.f1:.3f}")
        if self.word_errors is not None:
            parts.append(f"word error rate {self.word_errors:.3f}")
        if self.loss is not None:
            parts.append(f"held-out loss {self.loss:.3f} on {self.rows} rows")
        if self.lowered is not None:
            parts.append(
                "lower than before by {:.4f} (95 % interval {:.4f} to {:.4f}, row by row)".format(*self.lowered)
            )
        if self.sets is not None:
            parts.append("by data set " + ", ".join(f"{name} {loss:.3f}" for name, loss in self.sets.items()))
        return ", ".join(parts)
