"""What tasks are given and what they give: a run to measure, a trained model to use, predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.prompts import Prompter
from ..data.readers.row_check import Row
from ..recipe.sections import Recipe
from ..report.events import Reporter
from ..report.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...plan.trace import Trace
    from ...plan.work import Work
    from ..data.encode import Data
    from .base import Task

BEFORE, AFTER = "before", "after"  # stages of a run at which its model is measured


@dataclass(frozen=True)
class Job:
    """A run whose model is to be measured on its held-out rows; `stage` is `BEFORE` or `AFTER` training."""

    recipe: Recipe
    trainer: Any
    data: Data
    prompter: Prompter
    reporter: Reporter
    stage: str


@dataclass(frozen=True)
class Predictions:
    """Rows with what the model says to them, how right that is where the rows say it (None where not), and files that
    it made, by the names that the rows give them."""

    rows: list[Row]
    scores: Scores | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Around:
    """What a run does beside its steps, to be rehearsed on tensors without data.

    Attributes:
        kept: bytes of main memory that what was read of rows takes until the end.
        mapped: whether the models that read lie in files as they are computed with: what is left out stays there.
        reading: reads as many rows as are read in one pass, before the first step, by models of its own; None if that
            is not done.
        drawing: draws as many images or answers as are drawn at once, by the model that trains, and gives the work that
            it adds to every step, None where it is not done for each; None if none are drawn.
        drawn: what that is, for people.
        batch: makes a batch of rows where the trainer makes it of what was drawn; None where its collator does.
    """

    kept: int = 0
    mapped: bool = False
    reading: Callable[[Trace], None] | None = None
    drawing: Callable[[Trace, Any], Work | None] | None = None
    drawn: str = "images are drawn along the way"
    batch: Callable[[list[Mapping[str, Any]]], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Known:
    """What the files of a trained adapter say of it, before a model is loaded.

    Attributes:
        folder: the adapter's folder.
        recipe: the recipe that trained it, or what the adapter's config tells where there is none.
        task: what it was trained to do.
        is_adapter: whether it is an adapter on a base; else the whole model was trained.
    """

    folder: Path
    recipe: Recipe
    task: Task
    is_adapter: bool = field(default=True, kw_only=True)


@dataclass(frozen=True)
class Trained(Known):
    """A trained adapter on its base, ready to be used.

    Attributes:
        model: the `PeftModel`, in eval mode; after full fine-tuning the plain model.
        tokenizer: the tokenizer that it was trained with.
        trained_on: storage of the base that it was trained on.
        task_number: which of its tasks single texts belong to, where its method knows several.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    trained_on: str = "none"
    task_number: int | None = None

    def task_numbers(self, texts: int) -> list[int] | None:
        """`task_number` for each of so many texts."""
        return None if self.task_number is None else [self.task_number] * texts

    @property
    def prompter(self) -> Prompter:
        """Renders prompts as in training."""
        return self.task.prompter(self.recipe.data, self.tokenizer)

    @property
    def labels(self) -> list[str] | None:
        """The label names, where there is a fixed set."""
        if self.recipe.data.labels is not None or not self.task.classes:
            return self.recipe.data.labels
        return [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]
