"""An adapter that a run begins from (`model.adapter`): what it says of itself, and the base with it merged in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.config import PeftConfig
from ...core.model.auto import on_adapter
from ...errors import NotMergeable, RecipeError
from ..recipe.sections import ModelSection


def config_below(section: ModelSection) -> PeftConfig:
    """The config of the adapter that `section` names.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    return PeftConfig.from_pretrained(str(section.adapter))


def files_below(section: ModelSection) -> list[Path]:
    """What there is of it on this machine."""
    folder = Path(str(section.adapter))
    return sorted(path for path in folder.glob("adapter_*") if path.is_file()) if section.adapter is not None else []


def with_adapter_below(section: ModelSection, model: Any) -> Any:
    """The base with the section's adapter merged into it, where the run stands on that.

    Raises:
        CheckpointError: the adapter is damaged or for another base.
        RecipeError: it cannot be merged into this base.
    """
    if section.adapter is None or section.adapter_as != "base":
        return model
    if section.quantize != "none":
        raise RecipeError("an adapter is not merged into a quantised base", where="model.quantize",
                          got=section.quantize, fix="afina merge it first")  # fmt: skip
    try:
        return on_adapter(model, section.adapter)
    except NotMergeable as error:
        raise RecipeError("this adapter cannot lie below another one, because it cannot be merged",
                          where="model.adapter", got=str(error).splitlines()[0],
                          fix="go on with its own method") from error  # fmt: skip
