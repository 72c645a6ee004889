"""The contract of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...core.config import PeftConfig
from ...core.model.peft_model import MODEL_CLASSES
from ..answers.generate import left_padded
from ..answers.item_pass import Read, read_items
from ..answers.judge import of_positions
from ..base.base_model import base_location, check_location, config_of, load_tokenizer, sketch, vocab_size
from ..base.given_base import loaded
from ..base.rates import width_of
from ..base.whole_base import whole_base
from ..data.encode import Data, Encoded, token_ids
from ..data.prompts import Prompter
from ..data.rows import Rows
from ..recipe.sections import DataSection, ModelSection, Recipe
from ..recipe.task_types import TASK_TYPES
from ..report.events import Reporter, Span
from ..report.scores import Scores
from .arguments import training_arguments
from .job import AFTER, BEFORE, Around, Job, Known, Predictions, Trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PROBE_TOKENS, _JUDGED_AT_ONCE = 128, 8
"""Tokens, and rows: a language model's logits of a larger batch can be larger than the model."""
__all__ = ["AFTER", "BEFORE", "Around", "Job", "Known", "Predictions", "Task", "Trained"]


class Task(ABC):
    """How a model is loaded, fed, trained and judged.

    Attributes:
        name: as recipes write it; a row of `recipe.task_types`.
        loader: transformers' auto class.
        columns: what rows of this task look like, for people.
        classes: whether the model's head has one output for each label.
        streams: whether the model writes after its prompt, piece by piece.
        fast: whether the fast paths of causal language models apply.
        packs: whether several rows may share one sequence.
        learns_prompts: whether the loss can be taken on prompts too.
        groups: whether the trainer takes rows in our order.
        has_reference: whether the model without its adapter is what it is held to.
        may_stand_still: whether a step may have no gradient, because nothing in it tells good from bad.
        writes: whether the model writes text, whose length can be limited.
        judges: whether its predictions are no text all the same.
        loss_only: whether the Trainer's own evaluation needs the loss alone.
        loss_over_step: whether the loss is divided by the tokens of a whole step, not by those of its batch.
        shares: whether several processes take the steps that one would take: "exactly"; "nearly", where each takes the
            mean over its own rows; or "never".
        reader_file: what a folder has where it has what `reader` loads.
        medium: what a row is: texts, images or sounds; settings of the others do not apply.
        makes_files: whether its predictions are files.
        own_settings: settings that this task alone reads.
    """

    name: ClassVar[str]
    loader: ClassVar[str]
    columns: ClassVar[str]
    classes: ClassVar[bool] = False
    streams: ClassVar[bool] = False
    fast: ClassVar[bool] = False
    packs: ClassVar[bool] = False
    learns_prompts: ClassVar[bool] = False
    groups: ClassVar[bool] = True
    has_reference: ClassVar[bool] = False
    may_stand_still: ClassVar[bool] = False
    writes: ClassVar[bool] = False
    judges: ClassVar[bool] = False
    makes_files: ClassVar[bool] = False
    loss_only: ClassVar[bool] = True
    loss_over_step: ClassVar[bool] = False
    shares: ClassVar[str] = "nearly"
    reader_file: ClassVar[str] = "tokenizer_config.json"
    medium: ClassVar[str] = "texts"
    own_settings: ClassVar[tuple[str, ...]] = ()

    @property
    def fresh_heads(self) -> tuple[str, ...]:
        """Heads that are trained from nothing."""
        return MODEL_CLASSES[self.task_type].head_names if self.task_type else ()

    @property
    def task_type(self) -> str | None:
        """What the method's config is told (`afina.TaskType`); None where there is no type for it."""
        return TASK_TYPES[self.name]

    def check(self, recipe: Recipe) -> None:  # noqa: B027 - most take every setting
        """Refuse settings that this task cannot use, before anything is loaded.

        Raises:
            RecipeError: names the setting.
        """

    def labels(self, data: DataSection, parts: Sequence[Rows]) -> list[str] | None:
        """The labels of the task, checked on every row of `parts` (training rows first); None for free answers.

        Raises:
            DataError: a row's label is missing, of a wrong type or out of range; has file and line.
        """
        return None

    def check_location(self, section: ModelSection) -> None:
        """Refuse what is no base on this machine, before anything is fetched or read.

        Raises:
            RecipeError, CheckpointError: the section names nothing that can be loaded.
        """
        check_location(section)

    def location(self, section: ModelSection, reporter: Reporter) -> str:
        """The folder or hub id that the base is loaded from.

        Raises:
            RecipeError, CheckpointError: the section names nothing that can be.
        """
        return base_location(section, reporter)

    def width(self, location: str, section: ModelSection) -> int | None:
        """The width of the base's hidden states, which learning rates follow; None where that is not known."""
        return width_of(config_of(location, section))

    def reader(self, location: str, section: ModelSection, reporter: Reporter) -> Any:
        """What turns rows into what a model takes: its tokenizer."""
        return load_tokenizer(location, section, reporter)

    def shape_reader(self, location: str, section: ModelSection, reporter: Reporter) -> Any:
        """As `reader`, for a plan: what it reads has shapes only where a model would have to be loaded."""
        return self.reader(location, section, reporter)

    def around(self, recipe: Recipe, location: str, data: Data) -> Around | None:
        """What is done beside the steps by models of its own."""
        return None

    def headed(self, config: PeftConfig, base: Any) -> PeftConfig:
        """The config, told of heads that are trained along, where its type (`task_type`) does not say it."""
        return config

    def model_class(self, tokenizer: Any) -> str:
        """Transformers' auto class, where it is not always `loader`."""
        return self.loader

    def load_options(self, labels: list[str] | None) -> dict[str, Any]:
        """What the model is loaded with beside its dtype."""
        return {}

    def loaded(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027 - most need nothing
        """Finish a model that was just loaded."""

    def sketched(
        self, section: ModelSection, location: str, labels: list[str] | None, tokenizer: Any, layers: int | None = None
    ) -> Any:
        """The base as `load` makes it, or with so many layers, by its config alone: weights are not read."""
        options, size = self.load_options(labels), vocab_size(location, section, tokenizer)
        model = sketch(location, section, self.model_class(tokenizer), options, size, layers)
        self.loaded(model, tokenizer)
        return model

    def load(self, section: ModelSection, location: str, labels: list[str] | None, tokenizer: Any) -> PreTrainedModel:
        """The base model for this task; a classifier gets a fresh head with the labels' names.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        return loaded(lambda: self._load(section, location, labels, tokenizer))

    def _load(
        self, section: ModelSection, location: str, labels: list[str] | None, tokenizer: PreTrainedTokenizerBase
    ) -> PreTrainedModel:
        kind, options = self.model_class(tokenizer), self.load_options(labels)
        model: PreTrainedModel = whole_base(section, location, kind, options, self.fresh_heads, tokenizer)
        self.loaded(model, tokenizer)
        return model

    def prompter(self, data: DataSection, tokenizer: PreTrainedTokenizerBase) -> Prompter:
        """What renders rows and texts for a model."""
        return Prompter(data, tokenizer)

    @abstractmethod
    def encode(self, rows: Rows, prompter: Prompter, labels: list[str] | None, vocab_size: int) -> Encoded:
        """Rows as the trainer takes them.

        Raises:
            DataError: a row cannot be used; has file and line.
        """

    @abstractmethod
    def rendered(
        self, item: dict[str, Any], tokenizer: PreTrainedTokenizerBase, labels: list[str] | None
    ) -> list[Span]:
        """An encoded item as text, with what the loss is taken on."""

    @abstractmethod
    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """What pads a list of items to a batch of equal length."""

    def trainer(
        self, recipe: Recipe, model: Any, tokenizer: PreTrainedTokenizerBase, data: Data, arguments: Any
    ) -> Any:
        """The trainer; callbacks and optimizer groups are put on it afterwards."""
        from transformers import Trainer

        if hasattr(data.train, "set_epoch"):  # it orders its rows by itself
            arguments.train_sampling_strategy = "sequential"
        out = Trainer(
            model=model, args=arguments, train_dataset=data.train, eval_dataset=self.watched(recipe, data),
            data_collator=self.collator(tokenizer), processing_class=tokenizer,
        )  # fmt: skip
        # The Trainer takes every model whose forward has **kwargs for one whose loss is divided by all the tokens of a
        # step. Others take the mean of their own batch, which would be summed over a step's batches and processes.
        out.model_accepts_loss_kwargs = out.model_accepts_loss_kwargs and self.loss_over_step
        return out

    def training_items(self, recipe: Recipe, train: Encoded, prompter: Prompter, reporter: Reporter) -> Encoded:
        """The items to train on, with what belongs beside those of the rows."""
        return train

    def card(self, folder: Path) -> list[str]:
        """What the card of a run in that folder shows beside its results, as lines."""
        return []

    @staticmethod
    def watched(recipe: Recipe, data: Data) -> Encoded | None:
        """The held-out items whose loss is taken while training, where the recipe wants it."""
        return data.held_out if recipe.evaluation.every is not None else None

    def examples(self, recipe: Recipe, rows: int) -> int:
        """What an epoch's batches are made of."""
        return rows

    def arguments(self, recipe: Recipe, work: Path, learning_rate: float) -> Any:
        """The trainer's settings.

        Raises:
            RecipeError: transformers refuses one.
        """
        return training_arguments(recipe, work, learning_rate, prediction_loss_only=self.loss_only)

    @abstractmethod
    def score(self, job: Job) -> Scores:
        """Measure a run's model on its held-out rows.

        Raises:
            NumericError: the loss is not finite.
        """

    @abstractmethod
    def told(self, trained: Trained, text: str, max_new_tokens: int) -> str:
        """What a trained model says to one free text."""

    def probe(self, prompter: Prompter, text: str, device: Any) -> dict[str, Any]:
        """One text as arguments of the model's forward, to compare two models by."""
        return left_padded([token_ids(prompter, text, first=True)[:_PROBE_TOKENS]], 0, device)

    def item_losses(self, job: Job, items: Sequence[dict[str, Any]]) -> list[float]:
        """Of encoded items."""
        return [one.loss for one in self.read(job, items)]

    def read(self, job: Job, items: Sequence[dict[str, Any]]) -> list[Read]:
        """What the model says of every encoded item."""
        return read_items(job.trainer.model, self.collator(job.prompter.tokenizer), items,
                          shifted=self.task_type == "CAUSAL_LM", batch_size=_JUDGED_AT_ONCE)  # fmt: skip

    def position_losses(self, given: Mapping[str, Any], output: Any) -> tuple[Any, Any, int]:
        """What a training step's loss was taken of, as `of_positions` has it; `given` is what the model was."""
        return of_positions(output.logits, given["labels"], shifted=self.task_type == "CAUSAL_LM")

    def items(self, job: Job) -> tuple[list[float], list[float] | None]:
        """Of all held-out rows, the losses, and how right the model is (0 to 1; None where rows have a loss only)."""
        assert job.data.held_out is not None
        return self.item_losses(job, job.data.held_out.items), self.items_right(job)

    def items_right(self, job: Job) -> list[float] | None:
        """How right the model is on every held-out row."""
        return None

    def check_rows(self, rows: Rows, prompter: Prompter) -> None:  # noqa: B027 - some look while they predict
        """Refuse rows that `predict` would, as far as they alone tell, before a model is loaded.

        Raises:
            DataError: a row lacks a column, or has a label out of range.
        """

    @abstractmethod
    def predict(
        self, trained: Trained, rows: Rows, reporter: Reporter, batch_size: int, max_new_tokens: int | None
    ) -> Predictions:
        """What a trained model says to every row.

        Raises:
            DataError: a row lacks a column, or has a label out of range.
        """
