"""The two functions that adapt a model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping

from torch import Tensor, nn

from ...errors import AfinaWarning, TargetError
from ..config import PeftConfig
from ..disk.checkpoint import layer_config
from ..disk.names import own_key
from ..hosts import tuner
from ..inject.injection import inject
from ..inject.patterns import WholeNames
from ..inject.slots import slots
from ..inject.stacked import name_stacks
from ..inject.targets import settle
from ..validate import check_is
from .peft_model import PeftModel


def get_peft_model(
    model: nn.Module,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
) -> PeftModel:
    """Adapt a model: freeze it, put an adapter on every layer that the config targets, and return it wrapped.

    Args:
        model: any `torch.nn.Module`; changed in place.
        peft_config: what to adapt and how; copied.
        adapter_name: the adapter's name.
        mixed: accepted for the reference's sake; adapters of several methods always may be mixed.
        autocast_adapter_dtype: keep the adapter in float32 on a 16-bit base.
        revision: the base model's revision, recorded in the config.
        low_cpu_mem_usage: create the adapter without memory, to be filled by loading.

    Returns:
        A `PeftModel`, of the class that the config's `task_type` asks for.

    Raises:
        TargetError, ConfigError, NameTakenError: nothing was changed.
    """
    check_is(peft_config, PeftConfig, "peft_config", "e.g. LoraConfig(r=8)")
    config = copy.copy(peft_config)
    if revision is not None:
        if config.revision not in (None, revision):
            warnings.warn(
                f"revision: {revision!r} takes the place of the config's {config.revision!r}", AfinaWarning, 2
            )
        config.revision = revision
    return PeftModel.for_config(config)(model, config, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)


def inject_adapter_in_model(
    peft_config: PeftConfig,
    model: nn.Module,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
    state_dict: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Put an adapter into a model in place, without wrapping it, activate it, and return the model.

    The config is recorded in `model.peft_config`, where libraries that load adapters by themselves look for it.

    Args:
        peft_config: what to adapt and how; copied.
        model: any `torch.nn.Module`.
        adapter_name: the adapter's name.
        low_cpu_mem_usage: create the adapter without memory, to be filled by loading.
        state_dict: an adapter's tensors (names on disk); exactly the modules that they name are adapted.

    Raises:
        TargetError, ConfigError, NameTakenError: nothing was changed.
    """
    check_is(peft_config, PeftConfig, "peft_config", "e.g. LoraConfig(r=8)")
    check_is(model, nn.Module, "model", "of torch")
    config = copy.copy(layer_config(peft_config))
    exact = config
    if state_dict is not None:
        exact = copy.copy(config)
        exact.target_modules = _named_by(state_dict, model)
        exact.layers_to_transform = exact.exclude_modules = None
    else:
        name_stacks(model, config)
        config.target_modules = settle(model, config)
    inject(model, exact, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage)
    configs = model.__dict__.setdefault("peft_config", {})
    configs[adapter_name] = config
    tuner.activate(model, (adapter_name,), trainable=() if peft_config.inference_mode else None)
    return model


def _uncompiled(name: str) -> str:
    """A path without what `torch.compile` puts into it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _named_by(state_dict: Mapping[str, Tensor], model: nn.Module) -> WholeNames:
    """The modules whose tensors these are: of each key, the longest prefix that names a module."""
    names = {_uncompiled(s.name): s.name for s in slots(model)}
    found: dict[str, None] = {}
    for key in state_dict:
        parts = _uncompiled(own_key(key)).split(".")
        prefixes = (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
        found.update({n: None for n in [next((names[p] for p in prefixes if p in names), None)] if n is not None})
    if not found:
        raise TargetError("no tensor belongs to a module of the model", where="state_dict",
                          got=", ".join(list(state_dict)[:3]))  # fmt: skip
    return WholeNames(found)
