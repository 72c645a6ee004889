"""What identifies the base that an adapter was trained on."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError
from ..hosts.host import Host, hosts
from ..hosts.host_kinds import ModulesToSaveWrapper

SAMPLED_LAYERS = 64
SAMPLED_NUMBERS = 256


def fingerprint(model: nn.Module, name: str) -> dict[str, Any]:
    """Architecture, sizes, and a hash of numbers sampled from the weights that the adapter sits on."""
    config = getattr(model, "config", None)
    facts: dict[str, Any] = {"class": type(model).__name__}
    for key in ("model_type", "hidden_size", "num_hidden_layers"):
        value = getattr(config, key, None)
        if isinstance(value, (int, str)):
            facts[key] = value
    weights = list(_adapted_weights(model, name))
    step = max(1, len(weights) // SAMPLED_LAYERS)
    total, dtypes = hashlib.sha256(), set()
    for path, weight in weights[::step]:
        sample = weight.detach().reshape(-1)[:SAMPLED_NUMBERS].to("cpu").contiguous()
        total.update(path.encode())
        total.update(sample.view(torch.uint8).numpy().tobytes())
        dtypes.add(str(weight.dtype))
    if weights:
        facts |= {"weights_sha256": total.hexdigest(), "weights_dtype": ",".join(sorted(dtypes))}
    return facts


def _adapted_weights(model: nn.Module, name: str) -> list[tuple[str, Tensor]]:
    out: list[tuple[str, Tensor]] = []
    for path, host in hosts(model):
        if isinstance(host, ModulesToSaveWrapper) or isinstance(host.base_layer, Host) or host.adapter(name) is None:
            continue
        weight = host.original_parameters().get(host.base.weight_name)
        # Sharded, quantised and unallocated weights have no bits that could be compared.
        if weight is not None and type(weight) is nn.Parameter and weight.is_floating_point() and not weight.is_meta:
            out.append((path.replace(".base_layer", ""), weight))
    return out


def compare(saved: dict[str, Any], model: nn.Module, name: str, where: object) -> None:
    """Refuse an adapter that was trained on other weights; what was not recorded is not compared.

    Raises:
        CheckpointError: other architecture, size or weights.
    """
    here = fingerprint(model, name)
    facts = ("model_type", "hidden_size", "num_hidden_layers")
    different: list[str] = [k for k in facts if k in saved and k in here
                 and saved[k] != here[k]]  # fmt: skip
    same_storage = saved.get("weights_dtype") == here.get("weights_dtype")
    if not different and (not same_storage or saved.get("weights_sha256") == here.get("weights_sha256")):
        return
    keys = different or ["weights_sha256"]
    raise CheckpointError(
        "the adapter was trained on another base model", where=where,
        got=f"this model: {', '.join(f'{k}={str(here.get(k))[:16]}' for k in keys)}",
        expected=", ".join(f"{k}={str(saved.get(k))[:16]}" for k in keys),
        fix="load the base named in adapter_config.json, or pass allow_other_base=True",
    )  # fmt: skip
