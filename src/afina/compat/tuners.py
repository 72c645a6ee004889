"""`peft.tuners.*`: the classes of every method's layers and models, for `isinstance`.

Here one class of layer (`Host`) and one of model (`Tuner`) serve all methods, so these classes have no instances of
their own: a host is an instance of the layer class of each method that has an adapter on it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from ..core.config import PeftConfig, methods
from ..core.hosts.adapter import Adapter
from ..core.hosts.host import Host
from ..core.hosts.host_kinds import ModulesToSaveWrapper
from ..core.hosts.replacement import Tied
from ..core.hosts.tuner import Tuner
from ..core.model.peft_model import PeftModel
from ..core.prompts.encoder import PromptEncoder

_Test = Callable[[Host], bool]


def _kind(kind: str) -> _Test:
    return lambda host: host.base.kind == kind and not host.base.quantised


def _base(*names: str) -> _Test:
    return lambda host: type(host.get_base_layer()).__name__ in names


KINDS: Mapping[str, _Test] = MappingProxyType(
    {
        "Layer": lambda host: True,
        "Linear": _kind("linear"),
        "Embedding": _kind("embedding"),
        "MultiheadAttention": _kind("attention"),
        "ParamWrapper": lambda host: host.parameter is not None,
        **{name: _base(name) for name in ("Conv1d", "Conv2d", "Conv3d", "Linear4bit", "Linear8bitLt")},
    }
)
"""What layer classes are called, with or without the method's name before it -> whether a host is on such a layer."""

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "SVDLinear": "Linear",
        "SVDConv2d": "Conv2d",
        "SVDLinear8bitLt": "Linear8bitLt",
        "SVDLinear4bit": "Linear4bit",
        "AdaptedAttention": "Layer",
        "ShadowCarrier": "Layer",
    }
)
# The reference derives one method's layers and model from the other's.
_ALSO: Mapping[str, str] = MappingProxyType({"ADALORA": "LORA"})


def method_of(adapter: Adapter) -> str | None:
    """The peft_type of the method that an adapter is of, or whose adapter it follows; None for trained copies of
    modules."""
    kind: Any = type(adapter.sources[0] if isinstance(adapter, Tied) else adapter)
    return _method_of(kind)


@functools.lru_cache
def _method_of(kind: Any) -> str | None:
    for base in kind.__mro__:
        for name, method in methods().items():
            if base is method.implementation or any(base is special for _, special in _variants(method)):
                return name
    return None


def _variants(method: Any) -> list[Any]:
    return list(vars(method.implementation).get("variants", ()))


class _Layer(type):
    """The class of a method's layer classes."""

    peft_type: str
    test: _Test
    is_any: bool

    def __instancecheck__(cls, instance: object) -> bool:
        if not isinstance(instance, Host) or isinstance(instance, ModulesToSaveWrapper):
            return False
        found = {method_of(a) for n in instance.names() if (a := instance.adapter(n)) is not None}
        also = cls.is_any and any(_ALSO.get(str(t)) == cls.peft_type for t in found)
        wanted = also or cls.peft_type in found
        return wanted and cls.test(instance)


class _AnyLayer(type):
    """The class of `BaseTunerLayer`."""

    def __instancecheck__(cls, instance: object) -> bool:
        if cls is not BaseTunerLayer:
            return super().__instancecheck__(instance)
        return isinstance(instance, Host) and not isinstance(instance, ModulesToSaveWrapper)


class BaseTunerLayer(Host, metaclass=_AnyLayer):
    """What every layer with adapters is an instance of; trained copies of whole modules are none."""


class _Model(type):
    """The class of a method's model classes."""

    peft_type: str

    def __instancecheck__(cls, instance: object) -> bool:
        first = next(iter(instance.peft_config.values()), None) if isinstance(instance, Tuner) else None
        return first is not None and cls.peft_type in (first.peft_type, _ALSO.get(str(first.peft_type)))

    def __call__(cls, model: nn.Module, peft_config: Any, adapter_name: str = "default", **options: Any) -> Any:
        config = peft_config if isinstance(peft_config, PeftConfig) else peft_config[adapter_name]
        return PeftModel(model, config, adapter_name, **options).base_model


@functools.lru_cache
def _layer(peft_type: str, name: str, kind: str) -> type:
    own = {"peft_type": peft_type, "test": staticmethod(KINDS[kind]), "is_any": kind == "Layer",
           "adapter_layer_names": ("adapters",), "prefix": methods()[peft_type].implementation.prefix,
           "__doc__": f"Hosts with an adapter of {peft_type}."}  # fmt: skip
    return _Layer(name, (), own)


@functools.lru_cache
def _model(peft_type: str, name: str) -> type:
    prefix = methods()[peft_type].implementation.prefix
    return _Model(
        name, (), {"peft_type": peft_type, "prefix": prefix, "__doc__": f"What `base_model` is for {peft_type}."}
    )


def named(module: str, name: str) -> Any:
    """What `peft` has under a name in one of its modules, if it is a class of a method; otherwise None."""
    if name in TABLES:
        return TABLES[name]()
    folder = module.removeprefix("peft.tuners.").partition(".")[0] if module.startswith("peft.tuners.") else ""
    for peft_type, method in methods().items():
        if folder and peft_type.lower() != folder:
            continue
        stem = method.config.__name__.removesuffix("Config")
        if not issubclass(method.implementation, Adapter):
            if method.implementation.__name__ == name and issubclass(method.implementation, PromptEncoder):
                return method.implementation
            continue
        if name == f"{stem}Model":
            return _model(peft_type, name)
        own = name.removeprefix(stem) if name.startswith(stem) and name != stem else name if folder else ""
        kind = ALIASES.get(own, own)
        if kind in KINDS and (own != "Layer" or own != name):
            return _layer(peft_type, name, kind)
    return None


def _configs() -> dict[str, type[PeftConfig]]:
    return {name: method.config for name, method in methods().items()}


def _models() -> dict[str, type]:
    found = {n: m.config.__name__ for n, m in methods().items() if issubclass(m.implementation, Adapter)}
    return {n: _model(n, f"{c.removesuffix('Config')}Model") for n, c in found.items()}


TABLES: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {
        "PEFT_TYPE_TO_CONFIG_MAPPING": _configs,
        "PEFT_TYPE_TO_TUNER_MAPPING": _models,
        "PEFT_TYPE_TO_MIXED_MODEL_MAPPING": _models,
    }
)

__all__ = ["method_of", "named"]
