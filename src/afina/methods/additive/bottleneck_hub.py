"""Bottleneck adapters in the layout of AdapterHub's library `adapters` (1.x): its configuration and its names.

`adapter_config.json` is `{config: {...}, hidden_size, model_class, model_name, model_type, name, version}`; the tensors
are `<path>.adapters.<name>.adapter_down.0.weight` and so on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ...errors import ConfigError
from .bottleneck_config import BottleneckConfig
from .bottleneck_places import FLAGS, Place

LEAVES = {
    "adapter_down.0.weight": "adapter_down.weight", "adapter_down.0.bias": "adapter_down.bias",
    **{n: n for n in ("adapter_up.weight", "adapter_up.bias", "scaling", "gate.weight", "gate.bias")},
}  # fmt: skip
"""Name in a file -> name of the adapter's tensor."""
_SAME = ("non_linearity", "use_gating", "dropout", "init_weights", "stochastic_depth", "residual_before_ln")
_RULES = (*FLAGS.values(), "original_ln_before", "original_ln_after")
_OTHERS = ("ln_before", "ln_after", "inv_adapter", "phm_layer")
"""Options that have no counterpart here: new normalisations, invertible adapters, hypercomplex layers (Compacter)."""
_INERT: Mapping[str, Any] = {
    "adapter_residual_before_ln": False, "factorized_phm_W": True, "factorized_phm_rule": False, "phm_bias": True,
    "hypercomplex_nonlinearity": "glorot-uniform", "init_weights_seed": None, "inv_adapter": None, "learn_phm": True,
    "inv_adapter_reduction_factor": None, "ln_after": False, "ln_before": False, "phm_c_init": "normal", "phm_dim": 4,
    "phm_init_range": 0.0001, "phm_layer": False, "phm_rank": 1, "shared_W_phm": False, "shared_phm_rule": True,
}  # fmt: skip
"""What is written for options that have no effect on this kind of adapter."""
_BEFORE_VERSIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
"""Files without a version name these two activations differently."""


def is_hub_config(values: Mapping[str, Any]) -> bool:
    """Whether an `adapter_config.json` is AdapterHub's."""
    return "peft_type" not in values and {"config", "name", "model_type"} <= set(values)


def read_config(values: Mapping[str, Any], where: object) -> BottleneckConfig:
    """The configuration of a file.

    Raises:
        ConfigError: another kind of adapter, or an option that is not available here.
    """
    told = values["config"]
    if not isinstance(told, dict) or told.get("architecture") is not None or "mh_adapter" not in told:
        got = told.get("architecture", "unknown") if isinstance(told, dict) else told
        raise ConfigError("of AdapterHub's adapters only bottleneck adapters can be read", where=where, got=got)
    for key in _OTHERS:
        if told.get(key):
            raise ConfigError("this option of AdapterHub is not available", where=f"{where}: {key}", got=told[key])
    unknown = sorted(set(told) - {*_INERT, *_SAME, *_RULES, "is_parallel", "reduction_factor", "scaling", "leave_out",
                                  "architecture"})  # fmt: skip
    if unknown:
        raise ConfigError("unknown option of AdapterHub", where=f"{where}: {unknown[0]}", got=told[unknown[0]])
    houlsby = told.get("mh_adapter") and told.get("output_adapter")
    kind = "parallel" if told.get("is_parallel") else "houlsby" if houlsby else "pfeiffer"
    fields = {k: told[k] for k in (*_SAME, *_RULES, "reduction_factor", "scaling") if k in told}
    fields = {"original_ln_before": False, "original_ln_after": True, "init_weights": "bert", **fields}
    activation = str(fields.get("non_linearity", "")).lower()
    fields["non_linearity"] = activation if "version" in values else _BEFORE_VERSIONS.get(activation, activation)
    plain = BottleneckConfig.from_dict({"placement": kind})
    fields = {k: v for k, v in fields.items() if k not in _RULES or v != plain.rule(k)}
    return BottleneckConfig.from_dict({"placement": kind, **fields, "leave_out": told.get("leave_out") or None,
                                       "base_model_name_or_path": values.get("model_name") or None}, where)  # fmt: skip


def hub_config(config: BottleneckConfig, leave_out: list[int]) -> dict[str, Any]:
    """The `config` part of AdapterHub's file."""
    scaling = config.scaling if isinstance(config.scaling, str) else float(config.scaling)
    return {
        **_INERT, **{k: getattr(config, k) for k in _SAME}, **{k: config.rule(k) for k in _RULES},
        "is_parallel": config.placement == "parallel", "reduction_factor": config.reduction_factor,
        "scaling": scaling, "leave_out": leave_out,
    }  # fmt: skip


def hub_path(model: nn.Module, path: str) -> str:
    """A place's path without the name of the model inside a model with a head, which files may have or lack."""
    return path.removeprefix(f"{getattr(model, 'base_model_prefix', '')}.")


def hub_name(place: Place, name: str, key: str) -> str:
    """The name in AdapterHub's file of one of an adapter's tensors.

    Raises:
        ConfigError: it has none.
    """
    for leaf, own in LEAVES.items():
        if own == key:
            return f"{place.hub}.adapters.{name}.{leaf}"
    raise ConfigError("AdapterHub's layout has no such tensor", where=place.site, got=key)
