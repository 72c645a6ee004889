"""An adapter on disk that was opened and not yet loaded, in the library's own layout or in one that a method knows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from ...errors import CheckpointError
from ..config import CONFIG_NAME, PeftConfig, methods
from ..files.jsonfile import read_json_object
from ..files.tensorfile import Header, read_tensors
from .names import own_key
from .older_names import names_since

_V = TypeVar("_V")
NO_MATHS = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "task_type")
"""Fields of a config that do not decide what the tensors mean."""


@dataclass
class AdapterFile:
    """An adapter on disk, its header read and checked, its tensors not yet.

    Attributes:
        needs_model: whether only a model tells what the tensors are.
    """

    needs_model: ClassVar[bool] = False
    path: Path
    config: PeftConfig
    header: Header
    notes: dict[str, Any] = field(default_factory=dict)
    key_mapping: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Patterns of keys, without `base_model.model.` -> what stands in their place; the first that is found counts."""
    names_since: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Keys -> those that the model's library has given them since."""
    any_shape: bool = field(default=False, kw_only=True)
    """Tensors of another shape than the model's are left out, with a warning."""

    @property
    def config_path(self) -> Path:
        """Where its configuration lies."""
        return self.path.with_name(CONFIG_NAME)

    def stored(self) -> dict[str, Tensor]:
        """Read all tensors into memory, by their names in files of this library's layout."""
        return read_tensors(self.path, self.notes.get("tensors_sha256"))

    def tensors(self) -> dict[str, Tensor]:
        """The same with keys without the wrappers' prefixes."""
        return self._own_keys(self.stored())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key (without wrappers' prefixes) -> shape, from the header."""
        return self._own_keys(self.header.shapes)

    def whole_numbers(self) -> set[str]:
        """Keys whose tensors are no floating-point numbers."""
        return {k for k, d in self._own_keys(self.header.dtypes).items() if not d.startswith(("F", "BF"))}

    def fitted(self, model: nn.Module) -> AdapterFile:
        """The same file for this model; layouts whose names depend on the architecture translate them here."""
        if not self.key_mapping and not self.config.is_prompt_learning:
            self.names_since = names_since(model, self.shapes())
        return self

    def copy_heads(self, model: nn.Module, names: Iterable[str]) -> None:
        """Let the config copy those of the heads, by their `names` in the model, whose own parameters the file holds:
        a caller's config need not name them."""
        config: Any = self.config
        known, held = config.modules_to_save or [], self.shapes().keys()
        heads = [n for n in names if any(f"{n}.{key}" in held for key, _ in _child(model, n).named_parameters())]
        config.modules_to_save = [*known, *(n for n in heads if n not in known)] or None

    def _renamed(self, key: str) -> str:
        for pattern, replacement in self.key_mapping.items():
            new, count = re.subn(pattern, replacement, key)
            if count:
                return new
        return self.names_since.get(key, key)

    def _own_keys(self, values: Mapping[str, _V]) -> dict[str, _V]:
        out: dict[str, _V] = {}
        for name, value in values.items():
            key = self._renamed(own_key(name, self.config.is_prompt_learning))
            if key in out:
                raise CheckpointError("the file holds a tensor twice, under two spellings of its name",
                                      where=self.path, got=name)  # fmt: skip
            out[key] = value
        return out


def _child(model: nn.Module, name: str) -> nn.Module:
    return dict(model.named_children()).get(name) or nn.Module()


def foreign_file(config_path: Path, beside: Callable[[str], Path], allow_pickle: bool) -> AdapterFile | None:
    """The adapter as a method opens it that knows another library's layout (`open_foreign` of its class), or None."""
    values = read_json_object(config_path)
    if "peft_type" in values:
        return None
    readers = [getattr(known.implementation, "open_foreign", None) for known in methods().values()]
    found = (reader(values, config_path, beside, allow_pickle) for reader in readers if reader is not None)
    return next((file for file in found if file is not None), None)


def refuse_other_config(config: PeftConfig, file: AdapterFile) -> None:
    """Weights go only into an adapter of the same configuration.

    Raises:
        CheckpointError: names the fields that differ.
    """
    have, read = (json.loads(json.dumps(c.to_dict())) for c in (config, file.config))
    different = [k for k in have if k not in NO_MATHS and have[k] != read.get(k)]
    if different:
        raise CheckpointError(
            "the file is of another configuration than the adapter that it is to fill", where=file.path,
            got=", ".join(f"{k}={read.get(k)}" for k in different),
            expected=", ".join(f"{k}={have[k]}" for k in different),
            fix="load it under a new adapter name",
        )  # fmt: skip
