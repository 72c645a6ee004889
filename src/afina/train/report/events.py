"""What a run says while it works. The library keeps silent; the command line listens with a subclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Stage = Literal["base", "ready", "trained"]
"""Of a run: the base model is loaded; everything stands and nothing is trained yet; training is done."""


@dataclass(frozen=True)
class Span:
    """A piece of a rendered example: its text, and whether the loss is taken on it."""

    text: str
    trained: bool


@dataclass(frozen=True)
class Progress:
    """Where a loop stands.

    Attributes:
        stage: what runs: "training", "evaluating", ...
        done: steps or rows done.
        total: steps or rows in all.
        tokens_per_s: throughput without padding, or None where it is not counted.
        loss: the last logged loss, or None.
        memory: bytes that the process, or torch on the GPU, holds; None where it is not looked at.
    """

    stage: str
    done: int
    total: int
    tokens_per_s: float | None = None
    loss: float | None = None
    memory: int | None = None


class Reporter:
    """Receives what a run has to say; this one keeps silent."""

    def note(self, text: str) -> None:
        """A fact worth a line."""

    def detail(self, text: str) -> None:
        """A fact for who wants to know exactly; `note` has told what it comes to."""

    def warn(self, text: str) -> None:
        """Something that the user should know of."""

    def examples(self, examples: list[list[Span]]) -> None:
        """Rendered training examples as the model sees them."""

    def progress(self, state: Progress) -> None:
        """A loop moved; `done == total` ends it."""

    def reached(self, stage: Stage, parts: Mapping[str, Any]) -> None:
        """The run came to `stage`; `parts` are the living objects that it has by then, by name: `model` (the base at
        first), later `trainer`, `data`, `prompter` and the resolved `recipe` too; of several runs at once also `meet`,
        which waits until all of them have come to a place of their training."""
