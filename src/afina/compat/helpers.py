"""Functions of `peft.helpers` and `peft.utils` that other libraries call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..core.config import PeftConfig
from ..core.hosts.host import hosts
from ..errors import AfinaError, ConfigError

ALL_LINEAR = "all-linear"


def check_if_peft_model(model_name_or_path: str) -> bool:
    """Whether a folder or hub id holds an adapter."""
    try:
        PeftConfig.from_pretrained(model_name_or_path)
    except AfinaError:
        return False
    return True


def update_forward_signature(model: nn.Module) -> None:
    """Give the `forward` of a model with adapters the signature and documentation of its base's."""
    _sign(model, "forward")


def update_generate_signature(model: nn.Module) -> None:
    """As `update_forward_signature`, for `generate`."""
    _sign(model, "generate")


def update_signature(model: nn.Module, method: str = "all") -> None:
    """As `update_forward_signature`, for "forward", "generate" or "all"."""
    if method not in ("forward", "generate", "all"):
        raise ConfigError("not a method", where="method", got=method, expected="forward, generate, all")
    for name in ("forward", "generate") if method == "all" else (method,):
        _sign(model, name)


def _sign(model: Any, name: str) -> None:
    given = inspect.signature(getattr(model, name)).parameters.values()
    if any(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in given):
        return
    of_class, of_base = getattr(type(model), name), getattr(model.get_base_model(), name)

    def signed(self: Any, *args: Any, **kwargs: Any) -> Any:
        return of_class(self, *args, **kwargs)

    bound = inspect.signature(of_base)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signed.__name__, signed.__doc__ = name, of_base.__doc__
    vars(signed)["__signature__"] = bound.replace(parameters=[own, *bound.parameters.values()])
    vars(model)[name] = MethodType(signed, model)


def infer_device() -> str:
    """The kind of device that models would be put on."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if found is None else found.type


def transpose(weight: Tensor, fan_in_fan_out: bool) -> Tensor:
    """The weight as (out, in), whichever way it is stored."""
    return weight.T if fan_in_fan_out else weight


def shift_tokens_right(input_ids: Tensor, pad_token_id: int, decoder_start_token_id: int) -> Tensor:
    """Decoder inputs for labels: (batch, tokens), one to the right, ignored labels as padding."""
    first = torch.full_like(input_ids[:, :1], decoder_start_token_id)
    out = torch.cat([first, input_ids[:, :-1]], dim=1)
    return out.masked_fill(out == -100, pad_token_id)


def get_base_model_state_dict(model: Any) -> dict[str, Tensor]:
    """The base's own tensors under the names that they had before adapters were put on it."""
    return _base_tensors(model)


def set_base_model_state_dict(model: Any, state_dict: Mapping[str, Tensor], strict: bool = True) -> Any:
    """Load tensors of the base, under their plain names, into a model with adapters.

    Raises:
        RuntimeError: missing or unexpected keys, if `strict`.
    """
    own = _base_tensors(model)
    missing, unexpected = [k for k in own if k not in state_dict], [k for k in state_dict if k not in own]
    if strict and (missing or unexpected):
        raise RuntimeError(f"missing keys: {missing[:5]}, unexpected keys: {unexpected[:5]}")
    with torch.no_grad():
        for key in own.keys() & state_dict.keys():
            own[key].copy_(state_dict[key])
    return nn.modules.module._IncompatibleKeys(missing, unexpected)


def _base_tensors(model: Any) -> dict[str, Tensor]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    adapters = [f"{path}.{slot}." for path, host in hosts(base) for slot in (host.adapter_slot, "biases")]
    slots = {f"{path}.{host.base_slot}.": f"{path}." for path, host in hosts(base)}
    out: dict[str, Tensor] = {}
    for key, tensor in base.state_dict(keep_vars=True).items():
        if key.startswith(tuple(adapters)):
            continue
        for inside in sorted(slots, key=len, reverse=True):
            key = slots[inside] + key.removeprefix(inside) if key.startswith(inside) else key
        out[key] = tensor.detach()
    return out
