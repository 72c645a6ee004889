"""What state the adapters of a model are in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ...errors import ConfigError
from ..disk.names import layout
from ..hosts.host import Host, hosts
from ..hosts.replacement import Tied
from ..hosts.tuner import Tuner
from ..layers.storages import quantised_weight
from ..layers.whole_model import count_parameters

Irregular = Literal["irregular"]


@dataclass
class TunerLayerStatus:
    """One adapted layer."""

    name: str
    module_type: str
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | None = None


@dataclass
class TunerModelStatus:
    """All adapted layers together; "irregular" where they differ."""

    base_model_type: str
    adapter_model_type: str
    peft_types: dict[str, str]
    trainable_params: int
    total_params: int
    num_adapter_layers: int
    enabled: bool | Irregular
    active_adapters: list[str] | Irregular
    merged_adapters: list[str] | Irregular
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | Irregular | None = None


def get_layer_status(model: nn.Module) -> list[TunerLayerStatus]:
    """The state of every adapted layer.

    Args:
        model: a `PeftModel`, or any module with injected adapters.

    Returns:
        For each layer its name and class, whether it is enabled, and of its adapters which are there, active and
        merged, which require gradients, and where they lie.

    Raises:
        ConfigError: the model has none.
    """
    root, tuner, _ = layout(model)
    inside = "" if tuner is root else "model."
    found = [_layer(f"{inside}{name}", host) for name, host in hosts(root) if not _listens(host)]
    if not found:
        raise ConfigError("the model has no adapters", where=type(model).__name__)
    return found


def _listens(host: Host) -> bool:
    """Whether all that is on a layer only listens there for an adapter elsewhere: it has no tensors, shared or not."""
    adapters = [host.adapter(n) for n in host.names()]
    return bool(adapters) and all(
        a is not None and not isinstance(a, Tied) and getattr(a, "shared", None) is None and not a.state_dict()
        for a in adapters
    )


def _layer(name: str, host: Host) -> TunerLayerStatus:
    names = sorted(host.names())
    own = {n: list(getattr(host.adapter(n), "trainable", dict)().values()) for n in names}
    own = {n: [*p, *([host.biases[n]] if n in host.biases else [])] for n, p in own.items()}
    kind = "ModulesToSaveWrapper" if host.base_slot != "base_layer" else type(host.base_layer).__name__
    return TunerLayerStatus(
        name=name, module_type=kind, enabled=host.applies, active_adapters=list(host.active),
        merged_adapters=list(host.merged), requires_grad={n: _same(p.requires_grad for p in own[n]) for n in names},
        available_adapters=names, devices={n: sorted({str(p.device) for p in own[n]}) for n in names},
        quantization_backend=getattr(quantised_weight(host.get_base_layer()), "storage", None),
    )  # fmt: skip


def _same(values: Iterable[Any]) -> Any:
    unique = []
    for value in values:
        if value not in unique:
            unique.append(value)
    return unique[0] if len(unique) == 1 else "irregular"


def get_model_status(model: nn.Module) -> TunerModelStatus:
    """The state of all adapters of a model.

    Args:
        model: a `PeftModel`, or any module with injected adapters.

    Returns:
        The same over all layers ("irregular" where they differ), with the numbers of parameters and of adapted layers.

    Raises:
        ConfigError: the model has none.
    """
    root, tuner, _ = layout(model)
    layers = get_layer_status(model)
    names = sorted({n for layer in layers for n in layer.available_adapters})
    configs = tuner.peft_config if isinstance(tuner, Tuner) else {}
    trainable, total = count_parameters(root)
    return TunerModelStatus(
        base_model_type=type(root).__name__,
        adapter_model_type=type(tuner).__name__ if tuner is not root else "None",
        peft_types={n: str(c.peft_type) for n, c in configs.items()},
        trainable_params=trainable,
        total_params=total,
        num_adapter_layers=len(layers),
        enabled=_same(layer.enabled for layer in layers),
        active_adapters=_same(layer.active_adapters for layer in layers),
        merged_adapters=_same(layer.merged_adapters for layer in layers),
        requires_grad={n: _same(v.requires_grad[n] for v in layers if n in v.requires_grad) for n in names},
        available_adapters=names,
        devices={n: sorted({d for v in layers for d in v.devices.get(n, [])}) for n in names},
        quantization_backend=_same(layer.quantization_backend for layer in layers),
    )  # fmt: skip
