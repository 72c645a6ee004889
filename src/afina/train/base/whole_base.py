"""The base that a run stands on: the loaded model with the new tokens and the adapter below that its section names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..recipe.sections import ModelSection
from ..report.events import Reporter
from .adapter_below import with_adapter_below
from .base_model import load_base, load_tokenizer
from .new_tokens import grown


def whole_base(
    section: ModelSection, location: str, loader: str, options: Mapping[str, Any], fresh: Iterable[str], reader: Any
) -> Any:
    """As `load_base`; `reader` is the tokenizer that has the new tokens, where there are some.

    Raises:
        CheckpointError, RecipeError: as `load_base`.
    """
    model = load_base(section, location, loader, options, fresh)
    if section.new_tokens:
        plain = load_tokenizer(
            location, section.model_copy(update={"new_tokens": None, "chat_template": None}), Reporter()
        )
        model = grown(model, reader, plain, section)
    return with_adapter_below(section, model)
