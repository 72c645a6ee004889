"""The module tree `peft.*` that other libraries import from, filled with afina's own objects."""

from __future__ import annotations

import importlib
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import Any

_TUNERS_UTILS = {"BaseTunerLayer": "afina.core.host:Host", "BaseTuner": "afina.core.tuner:Tuner"}
_OTHER = {
    "ModulesToSaveWrapper": "afina.core.host:ModulesToSaveWrapper",
    "AuxiliaryTrainingWrapper": "afina.core.host:ModulesToSaveWrapper",
}
_STATE = {
    "get_peft_model_state_dict": "afina.core.checkpoint:get_peft_model_state_dict",
    "set_peft_model_state_dict": "afina.core.checkpoint:set_peft_model_state_dict",
    "load_peft_weights": "afina.core.checkpoint:load_peft_weights",
}

TREE: MappingProxyType[str, dict[str, str]] = MappingProxyType(
    {
        "peft": {"PeftMixedModel": "afina.core.model:PeftModel", **_STATE},
        "peft.config": {"PeftConfig": "afina.core.config:PeftConfig"},
        "peft.peft_model": {"PeftModel": "afina.core.model:PeftModel"},
        "peft.mapping": {"get_peft_model": "afina.core.mapping:get_peft_model"},
        "peft.utils": {**_OTHER, **_STATE, "PeftType": "afina:PeftType", "TaskType": "afina:TaskType"},
        "peft.utils.other": _OTHER,
        "peft.utils.save_and_load": _STATE,
        "peft.tuners": {},
        "peft.tuners.tuners_utils": _TUNERS_UTILS,
        "peft.tuners.lora": {"LoraLayer": "afina.core.host:Host", "LoraConfig": "afina:LoraConfig"},
        "peft.functional": {"inject_adapter_in_model": "afina.core.mapping:inject_adapter_in_model", **_STATE},
    }
)
"""Module -> name -> where afina has it; the top module also offers all of afina's own public names."""


class StandIn(ModuleType):
    """One module of the tree; looks its names up when they are first used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        place = TREE[self.__name__].get(name)
        if place is not None:
            module, _, attribute = place.partition(":")
            value = getattr(importlib.import_module(module), attribute)
        elif f"{self.__name__}.{name}" in TREE:
            value = importlib.import_module(f"{self.__name__}.{name}")
        elif self.__name__ == "peft":
            value = getattr(importlib.import_module("afina"), name)
        else:
            raise AttributeError(f"afina's stand-in for {self.__name__!r} has no {name!r}")
        setattr(self, name, value)
        return value


def build(version: str) -> dict[str, ModuleType]:
    """All modules of the tree, not yet in `sys.modules`."""
    out: dict[str, ModuleType] = {}
    for name in TREE:
        module = StandIn(name, doc="afina standing in for peft")
        spec = ModuleSpec(name, loader=None, origin="afina.compat", is_package=True)
        module.__spec__, module.__path__, module.__file__ = spec, [], None
        vars(module)["__version__"] = version
        out[name] = module
    return out
