"""The module tree `peft.*` that other libraries import from, filled with afina's own objects."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import Any

VERSION = "0.22.0"
"""The release that the stand-in answers for: the names of 0.21.2, and caches called as transformers 5.24 calls them,
which asks for this release."""

_FUNCTIONAL = "afina.compat.functional:"
_EXTRA = "afina.compat.extras:"
_PART = "afina.compat.parts:"
_STATE = {
    "get_peft_model_state_dict": "afina.core.disk.checkpoint:get_peft_model_state_dict",
    "set_peft_model_state_dict": "afina.core.disk.checkpoint:set_peft_model_state_dict",
    "load_peft_weights": "afina.core.disk.checkpoint:load_peft_weights",
}
_FUNCTIONS = {n: _FUNCTIONAL + n for n in ("set_adapter", "delete_adapter", "set_requires_grad", "cast_adapter_dtype")}
_TUNERS_UTILS = {
    "BaseTunerLayer": "afina.compat.tuners:BaseTunerLayer",
    "AuxiliaryTrainingWrapper": "afina.core.hosts.host:Host",
    "BaseTuner": "afina.core.model.base_tuner:BaseTuner",
    **{n: _EXTRA + n for n in ("onload_layer", "check_adapters_to_merge", "check_target_module_exists")},
    **_FUNCTIONS,
}
_HELPER = "afina.compat.helpers:"
_CONSTANTS = {
    "CONFIG_NAME": "afina.core.config:CONFIG_NAME",
    "SAFETENSORS_WEIGHTS_NAME": "afina.core.disk.checkpoint:WEIGHTS_NAME",
    "WEIGHTS_NAME": "afina.core.disk.checkpoint:PICKLE_NAME",
    "INCLUDE_LINEAR_LAYERS_SHORTHAND": _HELPER + "ALL_LINEAR",
    "EMBEDDING_LAYER_NAMES": "afina.core.inject.architectures:EMBEDDING_NAMES",
    "SEQ_CLS_HEAD_NAMES": "afina.core.inject.architectures:HEAD_NAMES",
    **{n: _PART + n for n in ("DUMMY_TARGET_MODULES", "DUMMY_MODEL_CONFIG", "TOKENIZER_CONFIG_NAME", "UPCAST_DTYPES",
                              "MIN_EXPECTED_CONFIG_KEYS", "MIN_TARGET_MODULES_FOR_OPTIMIZATION",
                              "ALLOWED_COMPUTE_DTYPES")},
}  # fmt: skip
_BLOOM = {"bloom_model_postprocess_past_key_value": _EXTRA + "bloom_model_postprocess_past_key_value"}
_REGISTER = {"register_peft_method": _EXTRA + "register_peft_method"}
_INSTALLED = {
    f"is_{n}_available": f"{_EXTRA}is_{n}_available"
    for n in ("bnb", "bnb_4bit", "gptqmodel", "eetq", "aqlm", "hqq", "torchao", "diffusers", "optimum", "inc", "xpu",
              "te", "te_pytorch", "torch_tpu")
} | {"is_torchao_ge_v0_18_0": _PART + "is_torchao_ge_v0_18_0"}  # fmt: skip
_MERGING = {n: _EXTRA + n for n in ("task_arithmetic", "magnitude_prune", "ties", "dare_linear", "dare_ties")}
_MERGING |= {n: _PART + n for n in ("magnitude_based_pruning", "random_pruning", "prune", "disjoint_merge",
                                    "reshape_weight_task_tensors", "calculate_majority_sign_mask")}  # fmt: skip
_OPTIMIZERS = {f"create_{n}_optimizer": f"afina.optimizers:create_{n}_optimizer"
               for n in ("loraplus", "lorafa", "riemannian")}  # fmt: skip
_LORAFA = {**_OPTIMIZERS, "LoraFAOptimizer": "afina.optimizers:LoraFAOptimizer"}
_STATUS = {n: f"afina.core.model.status:{n}" for n in ("TunerLayerStatus", "TunerModelStatus")}
_BOTH = {
    **{n: _HELPER + n for n in ("get_base_model_state_dict", "set_base_model_state_dict", "shift_tokens_right")},
    "cast_mixed_precision_params": _FUNCTIONAL + "cast_mixed_precision_params",
    "NoMatchingPeftModuleError": "afina.errors:TargetError",
    "PeftError": "afina.errors:AfinaError",
    "PeftWarning": "afina.errors:AfinaWarning",
}
_MIXED = {"MixedModel": "afina.core.model.base_tuner:BaseTuner"}
_LAYER = {"BaseTunerLayer": "afina.compat.tuners:BaseTunerLayer"}
_OTHER = {
    **_BOTH,
    **_BLOOM,
    "TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING": _EXTRA + "POSTPROCESSING",
    **{n: _HELPER + n for n in ("infer_device", "transpose")},
    **_CONSTANTS,
    **{n: _PART + n for n in ("get_pattern_key", "match_target_against_key", "str_to_bool")},
    "ModulesToSaveWrapper": "afina.core.hosts.host_kinds:ModulesToSaveWrapper",
    # Its keys are asked of every layer that it stands for.
    "AuxiliaryTrainingWrapper": "afina.core.hosts.host:Host",
    "_get_submodules": _FUNCTIONAL + "get_submodules",
    "fsdp_auto_wrap_policy": _FUNCTIONAL + "fsdp_auto_wrap_policy",
    "PeftType": "afina:PeftType",
    "TaskType": "afina:TaskType",
}
_HELPERS = {
    "MontecloraTrainerMixin": _PART + "MontecloraTrainerMixin",
    **{n: _FUNCTIONAL + n for n in ("disable_input_dtype_casting", "rescale_adapter_scale")},
    **{n: _HELPER + n for n in ("check_if_peft_model", "update_forward_signature",
                                                "update_generate_signature", "update_signature")},
}  # fmt: skip
_HOTSWAP = {
    n: f"afina.core.model.hotswap:{n}"
    for n in ("check_hotswap_configs_compatible", "hotswap_adapter", "hotswap_adapter_from_state_dict",
              "prepare_model_for_compiled_hotswap")
}  # fmt: skip
_INJECT = {"inject_adapter_in_model": "afina.compat.loading:inject_adapter_in_model"}
_MORE = {
    **_BOTH,
    **_BLOOM,
    **_REGISTER,
    "TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING": _EXTRA + "POSTPROCESSING",
    "get_peft_config": _FUNCTIONAL + "get_peft_config",
    "MODEL_TYPE_TO_PEFT_MODEL_MAPPING": "afina.core.model.peft_model:MODEL_CLASSES",
}

FOLDERS = (
    "adalora", "adamss", "adaption_prompt", "beft", "boft", "c3a", "cartridge", "cpt", "deft", "delora", "fourierft",
    "frod", "glora", "gralora", "hira", "hra", "ia3", "lily", "ln_tuning", "loha", "lokr", "lora", "miss",
    "multitask_prompt_tuning", "oft", "osf", "p_tuning", "peanut", "poly", "prefix_tuning", "prompt_tuning", "psoft",
    "pvera", "randlora", "road", "shadow", "shira", "supertuning", "tinylora", "trainable_tokens", "unilora", "vblora",
    "vera", "waveft", "xlora",
)  # fmt: skip
"""`peft.tuners.*`, a folder for each method."""
PARTS = (
    *(f"lora.{part}" for part in ("aqlm", "arrow", "awq", "bnb", "corda", "dora", "eetq", "eva", "gptq", "hqq", "inc",
                                  "intruders", "loraga", "monteclora", "te", "torchao", "tp_layer", "variants",
                                  "velora")),
    *(f"{folder}.bnb" for folder in ("adalora", "hira", "ia3", "pvera", "randlora", "road")),
    *(f"{folder}.utils" for folder in ("adamss", "adaption_prompt", "c3a", "cartridge", "osf")),
    "adalora.gptq", "boft.fbd", "lycoris_utils", "poly.router", "shadow.diffusion_models", "shadow.layers",
    "shira.mask_functions", "waveft.constants", "waveft.wavelet", "waveft.waverec2d", "xlora.classifier",
)  # fmt: skip
"""Files of the reference beside those that every method has."""

TREE: MappingProxyType[str, dict[str, str]] = MappingProxyType(
    {
        "peft": {"PeftMixedModel": "afina.core.model.peft_model:PeftModel", **_MORE, **_STATE, **_INJECT},
        "peft.import_utils": _INSTALLED,
        "peft.auto": {"MODEL_TYPE_TO_PEFT_MODEL_MAPPING": "afina.core.model.peft_model:MODEL_CLASSES"},
        "peft.config": {
            "PeftConfigMixin": "afina:PeftConfig",
            "PromptLearningConfig": "afina.core.prompts.encoder:PromptLearningConfig",
        },
        "peft.peft_model": _STATUS,
        "peft.mixed_model": {"PeftMixedModel": "afina.core.model.peft_model:PeftModel"},
        "peft.mapping": {**_INJECT, "get_peft_config": _FUNCTIONAL + "get_peft_config"},
        "peft.mapping_func": {"MODEL_TYPE_TO_PEFT_MODEL_MAPPING": "afina.core.model.peft_model:MODEL_CLASSES"},
        "peft.helpers": _HELPERS,
        "peft.utils": {**_OTHER, **_STATE, **_REGISTER},
        "peft.utils.other": _OTHER,
        "peft.utils.peft_types": _REGISTER,
        **{f"peft.utils.{part}": _BOTH for part in ("error", "warning")},
        **{f"peft.utils.{part}": {} for part in ("incremental_pca", "quantization_utils")},
        "peft.utils.loftq_utils": {},
        "peft.utils.merge_utils": _MERGING,
        "peft.utils.integrations": {
            "dequantize_module_weight": _EXTRA + "dequantize_module_weight",
            "init_empty_weights": "accelerate:init_empty_weights",
            **{n: _PART + n for n in ("check_deepspeed_zero3_enabled", "gather_params_ctx", "dequantize_bnb_weight")},
        },
        "peft.utils.constants": _OTHER,
        "peft.utils.save_and_load": _STATE,
        "peft.utils.hotswap": _HOTSWAP,
        "peft.utils.transformers_weight_conversion": {
            "build_peft_weight_mapping": "afina.compat.loading:build_peft_weight_mapping"
        },
        **{f"peft.tuners.{folder}{part}": {} for folder in FOLDERS for part in ("", ".model", ".config")},
        "peft.tuners.tuners_utils": _TUNERS_UTILS,
        **{f"peft.tuners.{folder}.layer": _LAYER for folder in FOLDERS},
        "peft.tuners.lora.conversion": {},
        **{f"peft.tuners.{part}": {} for part in PARTS},
        "peft.tuners.adamss.asa_callback": {"AdamssAsaCallback": "afina.compat.asa:AdamssAsaCallback"},
        "peft.tuners._buffer_dict": {"BufferDict": _EXTRA + "BufferDict"},
        "peft.tuners.lokr.layer": {**_LAYER, "factorization": "afina.methods.reparam.lokr:split"},
        **{f"peft.tuners{part}": _MIXED for part in ("", ".mixed", ".mixed.model")},
        **{f"peft.optimizers{part}": _OPTIMIZERS for part in ("", ".loraplus", ".riemannian")},
        "peft.optimizers.lorafa": _LORAFA,
        "peft.functional": {**_FUNCTIONS, **_STATE},
    }
)  # fmt: skip
"""Module -> name -> where afina has it; every module also offers all of afina's own public names."""


class StandIn(ModuleType):
    """One module of the tree; looks its names up when they are first used."""

    asked: Callable[[], None]

    def __reduce__(self) -> Any:
        return importlib.import_module, (self.__name__,)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        vars(self)["asked"]()
        _, dot, rest = self.__name__.partition(".")
        key = f"peft{dot}{rest}"
        if name == "__all__":  # by `from peft import *`
            return public_names(key)
        value: Any
        if f"{key}.{name}" in TREE:
            value = importlib.import_module(f"{self.__name__}.{name}")
        else:
            found = offered(key, name)
            value = getattr(importlib.import_module("afina"), name, None) if found is None else found
            if value is None:
                raise AttributeError(f"{self.__name__!r} has no {name!r} (afina in the place of peft)")
        setattr(self, name, value)
        return value


def public_names(module: str) -> list[str]:
    """What one of the reference's modules offers, by its name there."""
    own = {n for n in TREE[module] if not n.startswith("_") and f"{module}.{n}" not in TREE}
    tuners = importlib.import_module("afina.compat.tuners")
    models = {model.__name__ for model in tuners.named(module, "PEFT_TYPE_TO_TUNER_MAPPING").values()}
    return sorted({*importlib.import_module("afina").__all__, *own, *models, *tuners.TABLES})


def offered(module: str, name: str) -> Any:
    """What a module of the reference has under a name, beside afina's own public names; None if nothing."""
    place = TREE[module].get(name) or (_CONSTANTS.get(name) if module != "peft" else None)
    if place is None:
        found = importlib.import_module("afina.compat.tuners").named(module, name)
        return _inner(name) if found is None and module != "peft" else found
    source, _, attribute = place.partition(":")
    return getattr(importlib.import_module(source), attribute)


def _inner(name: str) -> Any:
    """What one of the reference's inner modules has under a name that is no public one of afina's."""
    if name == "PEFT_TYPE_TO_PREFIX_MAPPING":
        return importlib.import_module("afina.compat.parts").prefixes()
    targets = importlib.import_module("afina.compat.parts").default_targets(name)
    if targets is not None or hasattr(importlib.import_module("afina"), name):
        return targets
    return importlib.import_module("afina.compat.elsewhere").elsewhere(name)


def stand_in_module(name: str, version: str, asked: Callable[[], None]) -> StandIn:
    """The module of the tree that is to be imported as `name`: peft.X, or afina.X for scripts that import from afina
    what they imported from peft."""
    module = StandIn(name, doc="afina standing in for peft")
    spec = ModuleSpec(name, loader=None, origin="afina.compat", is_package=True)
    # No `__file__`: where it is None, `inspect` fails on whatever stands in a file of the real package.
    module.__spec__, module.__path__ = spec, []
    vars(module).update(__version__=version, asked=asked)
    return module


def build(version: str, asked: Callable[[], None] | None = None) -> dict[str, ModuleType]:
    """All modules of the tree, not yet in `sys.modules`; `asked` is called when the first name is asked for."""
    once = functools.cache(asked or (lambda: None))
    return {name: stand_in_module(name, version, once) for name in TREE}
