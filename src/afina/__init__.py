"""afina: every parameter-efficient fine-tuning method behind one small contract.

Names are imported when they are first used, so that `import afina` costs next to nothing. Type checkers and editors
read `__init__.pyi` instead, which `scripts/api_page.py` generates from this file and the methods'.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from typing import Any

from .version import __version__ as __version__

_WHERE = {
    "core.config": ("PeftConfig", "PeftType", "TaskType", "LayerConfig", "config_class"),
    "core.model.mapping": ("get_peft_model", "inject_adapter_in_model"),
    "core.model.peft_model": (
        "PeftModel", "PeftModelForCausalLM", "PeftModelForSeq2SeqLM", "PeftModelForSequenceClassification",
        "PeftModelForTokenClassification", "PeftModelForQuestionAnswering", "PeftModelForFeatureExtraction",
    ),
    "core.model.auto": (
        "AutoPeftModel", "AutoPeftModelForCausalLM", "AutoPeftModelForSeq2SeqLM",
        "AutoPeftModelForSequenceClassification", "AutoPeftModelForTokenClassification",
        "AutoPeftModelForQuestionAnswering", "AutoPeftModelForFeatureExtraction",
    ),
    "core.disk.checkpoint": ("get_peft_model_state_dict", "set_peft_model_state_dict", "load_peft_weights"),
    "core.layers.kbit": ("prepare_model_for_kbit_training",),
    "core.combine.folder": ("load_adapters",),
    "core.model.hotswap": ("hotswap_adapter", "prepare_model_for_compiled_hotswap"),
    "core.model.status": ("get_layer_status", "get_model_status"),
    "kernels.speed": ("speed_up",),
    "optimizers": ("create_loraplus_optimizer",),
    "train.fleet.many": ("train_many",),
    "compat": ("stand_in", "StandInError"),
    "errors": (
        "AfinaError", "ConfigError", "TargetError", "NameTakenError", "CheckpointError", "NotMergeable", "NotAWeight",
        "MergeError", "NumericError", "DataError", "RecipeError", "StoppedError", "AfinaWarning",
    ),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}


class _Modules:
    """Finds what is no file of afina: the reference's modules under afina's name."""

    @staticmethod
    def find_spec(fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not fullname.startswith(f"{__name__}."):
            return None
        from .compat.finder import ModuleFinder

        return ModuleFinder().find_spec(fullname)


sys.meta_path.append(_Modules)


def __getattr__(name: str) -> Any:
    if name == "__all__":  # by `from afina import *`, which needs the methods' files in any case
        return _names()
    if name.startswith("__"):
        raise AttributeError(name)
    place = _MODULE_OF.get(name)
    value = _found(name) if place is None else getattr(importlib.import_module(f".{place}", __name__), name)
    globals()[name] = value
    return value


def _found(name: str) -> Any:
    """A config or helper that a method file brings."""
    from .methods import public_names

    names = public_names()
    if name in names:
        return names[name]
    if importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f".{name}", __name__)
    from .compat.modules import offered

    if (value := offered("peft", name)) is None:
        raise AttributeError(f"module 'afina' has no attribute {name!r}")
    return value


def _names() -> list[str]:
    from .methods import public_names

    return sorted({*_MODULE_OF, *public_names()})


def __dir__() -> list[str]:
    return ["__version__", *_names()]
