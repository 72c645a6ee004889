"""What a run is planned from: its recipe with all filled in, its rows as its trainer takes them, its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...base.base_model import vocab_size
from ...data.encode import Data
from ...recipe.sections import Recipe
from ...report.events import Reporter
from ...tasks import named
from ...tasks.examples import encode
from ..adapt import planned_steps
from ..begin import prepared


@dataclass(frozen=True)
class Setting:
    """A run before its model is read.

    Attributes:
        location: of the base.
        tokenizer: or what else reads the rows.
        steps: of the optimizer.
        tokens, layers, pixels: of rows, of the model and of images' sides, where others are to be planned with than
            there are.
    """

    recipe: Recipe
    location: str
    tokenizer: Any
    data: Data
    steps: int
    tokens: int | None = None
    layers: int | None = None
    pixels: int | None = None

    def training(self, **changes: Any) -> Setting:
        """The same with other settings of training; the rows stay as they are."""
        training = self.recipe.training.model_copy(update=changes)
        return replace(self, recipe=self.recipe.model_copy(update={"training": training}))

    def on_processor(self) -> Setting:
        """The same on this machine's processor, alone and without DeepSpeed, where every run can be rehearsed."""
        out = self.model(device="cpu")
        return replace(out, recipe=out.recipe.model_copy(update={"distributed": "auto"}))

    def model(self, **changes: Any) -> Setting:
        """The same with other settings of the base; the rows stay as they are."""
        model = self.recipe.model.model_copy(update=changes)
        return replace(self, recipe=self.recipe.model_copy(update={"model": model}))

    def sized(self, pixels: int) -> Setting:
        """The same with images of other sides."""
        out = self.model(image_size=pixels)
        reader = named(self.recipe.task).shape_reader(self.location, out.recipe.model, Reporter())
        return replace(out, tokenizer=reader, pixels=pixels)


def setting_of(recipe: Recipe, reporter: Reporter) -> Setting:
    """The setting of a recipe. Weights are not read.

    Raises:
        AfinaError: what would stop the run at its beginning.
    """
    recipe, split, labels = prepared(recipe, reporter)
    task = named(recipe.task)
    location = task.location(recipe.model, reporter)
    tokenizer = task.shape_reader(location, recipe.model, reporter)
    data = encode(recipe, split, labels, tokenizer, vocab_size(location, recipe.model, tokenizer), reporter)
    return Setting(recipe, location, tokenizer, data, planned_steps(recipe, task.examples(recipe, len(data.train))))
