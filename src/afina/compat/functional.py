"""`peft.functional` and its neighbours: adapters on models that are not wrapped in a `PeftModel`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..core.combine.unload import delete
from ..core.config import PeftConfig
from ..core.hosts import tuner
from ..core.hosts.host import hosts
from ..core.validate import as_names


def set_adapter(
    model: nn.Module, adapter_name: str | list[str], inference_mode: bool = False, layer_cls: Any = None
) -> None:
    """Activate adapters; exactly they become trainable, or none if `inference_mode`."""
    names = as_names(adapter_name)
    tuner.check_known(names, tuner.adapter_names(model))
    tuner.activate(model, names, trainable=() if inference_mode else None)


def delete_adapter(model: nn.Module, adapter_name: str, prefix: str = "", layer_cls: Any = None) -> list[str] | None:
    """Remove an adapter; returns the adapters that are active now."""
    tuner.check_known([adapter_name], tuner.adapter_names(model))
    active = next((h.active for _, h in hosts(model) if h.active), ())
    delete(model, adapter_name)
    left = tuple(n for n in active if n != adapter_name) or tuple(tuner.adapter_names(model)[:1])
    tuner.activate(model, left)
    return list(left) or None


def set_requires_grad(model: nn.Module, adapter_names: str | Iterable[str], requires_grad: bool = True) -> None:
    """Freeze or unfreeze adapters without activating them."""
    tuner.set_requires_grad(
        model, [adapter_names] if isinstance(adapter_names, str) else list(adapter_names), requires_grad
    )


def cast_adapter_dtype(model: nn.Module, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
    """Keep the adapter's 16-bit parameters in float32."""
    if not autocast_adapter_dtype:
        return
    for _, host in hosts(model):
        found = host.adapter(adapter_name)
        for parameter in [] if found is None else found.parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()


@contextlib.contextmanager
def disable_input_dtype_casting(model: nn.Module, active: bool = True) -> Iterator[None]:
    """Nothing to switch off: a host hands the base layer its input as it came, and casts only what adapters read."""
    yield


def get_submodules(model: nn.Module, key: str) -> tuple[nn.Module, nn.Module, str]:
    """(parent, module, the module's name in its parent) of a dotted path."""
    parent, _, name = key.rpartition(".")
    return model.get_submodule(parent), model.get_submodule(key), name


@contextlib.contextmanager
def rescale_adapter_scale(model: nn.Module, multiplier: float) -> Iterator[None]:
    """Multiply the active adapters' scaling for the duration of the context.

    Raises:
        TypeError: the multiplier is no number.
        ValueError: no adapter here has a scaling.
    """
    if not isinstance(multiplier, (int, float)):
        raise TypeError(f"multiplier must be a number, got {type(multiplier).__name__}")
    scaled: list[Any] = [a for _, h in hosts(model) for a in h.stack if hasattr(a, "initial_scaling")]
    if not scaled:
        raise ValueError("no active adapter of this model has a scaling")
    before = [a.scaling for a in scaled]
    for adapter in scaled:
        adapter.scaling = adapter.scaling * multiplier
    try:
        yield
    finally:
        for adapter, value in zip(scaled, before, strict=True):
            adapter.scaling = value


def fsdp_auto_wrap_policy(model: nn.Module) -> Any:
    """FSDP wraps transformer blocks, and apart from them every leaf that trains, so that flat parameters do not mix
    trained and frozen tensors. The blocks' classes come from FSDP_TRANSFORMER_CLS_TO_WRAP, else from the model."""
    import functools
    import os

    from torch.distributed.fsdp.wrap import _or_policy, lambda_auto_wrap_policy, transformer_auto_wrap_policy

    named = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    wanted = set(filter(None, named.split(","))) or set(getattr(model, "_no_split_modules", None) or ())
    classes = {type(m) for m in model.modules() if type(m).__name__ in wanted}

    def trains(module: nn.Module) -> bool:
        own = list(module.parameters(recurse=False))
        return not any(True for _ in module.children()) and bool(own) and all(p.requires_grad for p in own)

    leaves = functools.partial(lambda_auto_wrap_policy, lambda_fn=trains)
    blocks = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=classes)
    return functools.partial(_or_policy, policies=[leaves, blocks])


def get_peft_config(config_dict: dict[str, Any]) -> PeftConfig:
    """The config that a dictionary describes by its `peft_type`."""
    return PeftConfig.from_dict(config_dict)


def cast_mixed_precision_params(model: nn.Module, dtype: torch.dtype) -> None:
    """Frozen parameters to `dtype`, trained ones to float32."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)
