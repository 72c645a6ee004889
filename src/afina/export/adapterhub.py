"""Bottleneck adapters in the layout of AdapterHub's library `adapters`, which loads them with `use_safetensors=True`.

Reading needs no function: `PeftModel.from_pretrained` and `load_adapter` recognise the layout.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..core.config import CONFIG_NAME
from ..core.disk.checkpoint import WEIGHTS_NAME as OWN_WEIGHTS
from ..core.disk.checkpoint import get_peft_model_state_dict
from ..core.disk.names import own_key
from ..core.files.jsonfile import publish
from ..core.files.tensorfile import to_bytes
from ..core.inject.targets import select
from ..errors import ConfigError
from ..methods.additive.bottleneck_config import BottleneckConfig
from ..methods.additive.bottleneck_files import WEIGHTS_NAME
from ..methods.additive.bottleneck_hub import hub_config, hub_name
from ..methods.additive.bottleneck_places import Place, find_places

if TYPE_CHECKING:
    from ..core.model.peft_model import PeftModel

VERSION = "adapters.1.3.0"
"""The release of AdapterHub's library whose layout is written."""


def save(model: PeftModel, folder: str | Path, adapter_name: str = "default", *, name: str | None = None) -> None:
    """Write an adapter into a folder, for AdapterHub's library.

    Args:
        name: the adapter's name there; `adapter_name` if None.

    Raises:
        ConfigError: the layout cannot hold this adapter; nothing was written.
        NumericError: a tensor is not finite.
    """
    if (Path(folder) / OWN_WEIGHTS).exists():
        raise ConfigError("this would overwrite an adapter's config", where=folder, fix="choose another folder")
    config, base = model.peft_config.get(adapter_name), model.get_base_model()
    if not isinstance(config, BottleneckConfig):
        raise ConfigError("only bottleneck adapters can be written in AdapterHub's layout", where=adapter_name,
                          got=None if config is None else config.peft_type)  # fmt: skip
    name = name or adapter_name
    if not re.fullmatch(r"[\w-]+", name):
        raise ConfigError("not usable as a name in AdapterHub's layout", where="name", got=name)
    places = find_places(base, config)
    sites = select(base, config)
    outside = next((s for s in sites if s not in places), None)
    if outside is not None:
        raise ConfigError("AdapterHub has no adapter at this place", where=outside)
    used = [places[s] for s in sites]
    leave_out = _left_out(list(places.values()), used, config)
    tensors: dict[str, Tensor] = {}
    found = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    for key, tensor in found.items():
        place = next((p for p in used if own_key(key).startswith(f"{p.site}.")), None)
        if place is None:
            raise ConfigError("AdapterHub's layout has no place for this", where=own_key(key),
                              fix="train without modules_to_save")  # fmt: skip
        tensors[hub_name(place, name, own_key(key).removeprefix(f"{place.site}."))] = tensor
    settings = getattr(base, "config", None)
    text = json.dumps(
        {
            "config": hub_config(config, leave_out),
            "hidden_size": used[0].dim,
            "model_class": type(base).__name__,
            "model_name": config.base_model_name_or_path or "",
            "model_type": getattr(settings, "model_type", None),
            "name": name,
            "version": VERSION,
        },
        indent=2, sort_keys=True, allow_nan=False,
    )  # fmt: skip
    publish(Path(folder), {WEIGHTS_NAME: to_bytes(tensors, {}), CONFIG_NAME: text.encode()})


def _left_out(places: list[Place], used: list[Place], config: BottleneckConfig) -> list[int]:
    """The layers without adapters.

    Raises:
        ConfigError: the adapted places are not all of those that the configuration asks for in the other layers.
    """
    asked = [p for p in places if config.rule(p.flag)]
    layers = {p.layer for p in used}
    differs = {p.site for p in asked if p.layer in layers} ^ {p.site for p in used}
    if differs:
        raise ConfigError("AdapterHub's layout has the same places in every layer that it adapts", where=min(differs),
                          fix="choose places with mh_adapter, output_adapter, cross_adapter")  # fmt: skip
    return sorted({p.layer for p in asked} - layers)
