"""Opens a folder that AdapterHub's library wrote: tensors in `adapter.safetensors`, or (its default) in a pickle."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from ...core.disk.adapter_file import AdapterFile
from ...core.disk.held_file import header_of, unpickled
from ...core.files.tensorfile import check_finite, read_header
from ...errors import AfinaWarning, CheckpointError
from .bottleneck_config import BottleneckConfig
from .bottleneck_hub import LEAVES, hub_path, is_hub_config, read_config
from .bottleneck_places import find_places

WEIGHTS_NAME, PICKLE_NAME, HEAD_NAME = "adapter.safetensors", "pytorch_adapter.bin", "head_config.json"
_V = TypeVar("_V")
_KEY = re.compile(
    r"(?P<path>.+)\.(?:adapters|(?:attention|layer)_text_(?:task|lang)_adapters)\.(?P<name>[^.]+)\.(?P<leaf>.+)"
)
"""The second spelling of the module is that of files before 1.0."""


@dataclass
class HubFile(AdapterFile):
    """An adapter in AdapterHub's layout; its tensors have no names of ours before `fitted` saw the model."""

    needs_model: ClassVar[bool] = True
    model_type: str = ""
    hub_name: str = ""
    held: dict[str, Tensor] | None = None
    names: dict[str, str] = field(default_factory=dict)

    def stored(self) -> dict[str, Tensor]:
        if self.held is None:
            return super().stored()
        check_finite(self.held, self.path)
        return self.held

    def _own_keys(self, values: Mapping[str, _V]) -> dict[str, _V]:
        return {self.names.get(name, name): value for name, value in values.items()}

    def fitted(self, model: nn.Module) -> HubFile:
        """Find each tensor's place.

        Raises:
            CheckpointError: the model is of another or an unknown architecture, or two tensors have one place.
        """
        assert isinstance(self.config, BottleneckConfig)
        found = getattr(getattr(model, "config", None), "model_type", None)
        if found != self.model_type:
            raise CheckpointError("the adapter is for another architecture", where=self.path, got=self.model_type,
                                  expected=found)  # fmt: skip
        places = {hub_path(model, p.hub): p.site for p in find_places(model, self.config).values()}
        if not places:
            raise CheckpointError("AdapterHub's places in this architecture are not known", where=self.path, got=found)
        names = {}
        for key in self.header.shapes:
            match = _KEY.fullmatch(key)
            site = places.get(hub_path(model, match["path"])) if match else None
            if match and site is not None and match["name"] == self.hub_name and match["leaf"] in LEAVES:
                names[key] = f"{site}.{LEAVES[match['leaf']]}"
        if len(set(names.values())) < len(names):
            raise CheckpointError("the file holds a tensor twice, under two spellings of its name", where=self.path)
        self.names = names
        return self


def open_hub(
    values: Mapping[str, Any], config_path: Path, beside: Callable[[str], Path], allow_pickle: bool
) -> HubFile | None:
    """The adapter of a folder in AdapterHub's layout; None if `values` (its configuration) are not of that layout.

    Raises:
        ConfigError: another kind of adapter, or an option that is not available here.
        CheckpointError: no weights, damaged ones, or a pickle that was not allowed.
    """
    if not is_hub_config(values):
        return None
    config = read_config(values, config_path)
    if (config_path.parent / HEAD_NAME).exists():
        warnings.warn(f"{config_path.parent}: the prediction head beside the adapter is not read", AfinaWarning, 4)
    kind, name = str(values["model_type"]), str(values["name"])
    try:
        path = beside(WEIGHTS_NAME)
    except CheckpointError:
        path = beside(PICKLE_NAME)
        if not allow_pickle:
            raise CheckpointError(
                "the weights are a pickle, and loading a pickle can run code", where=path,
                fix="allow_pickle=True reads it with torch's weights_only, which refuses code; "
                "or save it again with use_safetensors=True",
            ) from None  # fmt: skip
        held = unpickled(path)
        return HubFile(path, config, header_of(held), {}, kind, name, held)
    return HubFile(path, config, read_header(path), {}, kind, name)
