"""Arrow's model: trained LoRAs on one base, and the router over them; `arrow.py` has the method."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from ...core.hosts.host import hosts
from ...core.model.peft_model import PeftModel
from ...errors import ConfigError, TargetError
from .lora_config import LoraConfig
from .lora_options import ArrowConfig

PUBLIC = ("create_arrow_model",)
ROUTER = "arrow_router"


def create_arrow_model(
    base_model: nn.Module,
    task_specific_adapter_paths: Sequence[str],
    arrow_config: ArrowConfig,
    general_adapter_paths: Sequence[str] | None = None,
    **adapter_kwargs: Any,
) -> PeftModel:
    """Load LoRAs as `task_0`, ... (and general ones as `gks_0`, ...), and route among them as `arrow_router`.

    Args:
        base_model: the plain model; changed in place.
        task_specific_adapter_paths: folders, hub ids, or hub ids followed by a subfolder.
        arrow_config: settings of the router; takes the adapters' names.
        general_adapter_paths: what is subtracted if `use_gks`.
        **adapter_kwargs: for `from_pretrained` and `load_adapter`.

    Returns:
        The model, with the router active.

    Raises:
        ConfigError, TargetError, CheckpointError: the model has no adapters then.
    """
    general = list(general_adapter_paths or ()) if arrow_config.use_gks else []
    paths = {f"task_{i}": p for i, p in enumerate(task_specific_adapter_paths or ())}
    if len(paths) < arrow_config.top_k or (arrow_config.use_gks and not general):
        raise ConfigError("not enough adapters", where="create_arrow_model", got=f"{len(paths)} and {len(general)}",
                          expected=f"top_k={arrow_config.top_k} experts; for use_gks a general one")  # fmt: skip
    arrow_config.task_adapter_names = list(paths)
    arrow_config.gks_adapter_names = [f"gks_{i}" for i in range(len(general))]
    paths |= dict(zip(arrow_config.gks_adapter_names, general, strict=True))
    (first, path), *rest = paths.items()
    model = PeftModel.from_pretrained(base_model, adapter_name=first, **_source(path, adapter_kwargs))
    with contextlib.ExitStack() as undo:
        undo.callback(model.unload)
        for name, path in rest:
            model.load_adapter(adapter_name=name, **_source(path, adapter_kwargs))
        targets, rank = _common_layers(model, list(paths))
        model.add_adapter(ROUTER, LoraConfig(arrow_config=arrow_config, target_modules=targets, r=rank),
                          autocast_adapter_dtype=adapter_kwargs.get("autocast_adapter_dtype", True))  # fmt: skip
        model.set_adapter(ROUTER)
        undo.pop_all()
    return model


def _source(path: str, options: dict[str, Any]) -> dict[str, Any]:
    """`user/repository/sub/folder` of the hub in its two parts."""
    owner, *rest = path.strip("/").split("/")
    if os.path.isdir(path) or len(rest) < 2:
        return {"model_id": path, **options}
    return {"model_id": f"{owner}/{rest[0]}", "subfolder": "/".join(rest[1:]), **options}


def _common_layers(model: PeftModel, names: list[str]) -> tuple[list[str], int]:
    """The layers that every adapter is on, and the first one's rank."""
    found = {n: [path for path, host in hosts(model.get_base_model()) if host.adapter(n) is not None] for n in names}
    odd = next((n for n in names if found[n] != found[names[0]]), None)
    if odd is not None:
        raise TargetError("all experts must be on the same layers", where=odd, got=", ".join(found[odd][:3]),
                          expected=", ".join(found[names[0]][:3]))  # fmt: skip
    config = model.peft_config[names[0]]
    if not isinstance(config, LoraConfig):
        raise ConfigError("only LoRA can be routed", where=names[0], got=config.peft_type)
    return found[names[0]], config.r
