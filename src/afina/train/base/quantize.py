"""A base model in few bits, for training adapters on it (QLoRA, Dettmers et al. 2023, arXiv 2305.14314)."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

from ...devices.found import Device
from ...devices.place import place
from ...devices.ranks import spread
from ...errors import RecipeError
from ..recipe.sections import ModelSection

_PACKAGES = {"nf4": "bitsandbytes", "fp4": "bitsandbytes", "int8": "bitsandbytes",
             "int8wo": "torchao", "int4wo": "torchao", "fp8": "torchao"}  # fmt: skip
SPREADS = ("none", "nf4", "fp4")
"""Storages whose weights FSDP2 spreads over processes."""
GROUP = 32
"""Inputs that share a scale in torchao's int4."""


_FP8_FROM = (9, 0)
"""Capability of CUDA devices that multiply float8 with a scale a row."""
_EIGHT_BIT_GROUP = 16
"""Inputs and outputs of float8 products come in multiples of it."""


def check(section: ModelSection, device: Device | None = None) -> None:
    """Refuse a storage whose package is missing, or that the device cannot compute with.

    Args:
        device: where the model goes; the section's if None.

    Raises:
        RecipeError: with the package to install, or the device that is needed.
    """
    package = _PACKAGES.get(section.quantize)
    if package is not None and importlib.util.find_spec(package) is None:
        raise RecipeError("this storage needs a package that is not installed", where="model.quantize",
                          got=section.quantize, expected=package, fix="pip install 'afina[quant]'")  # fmt: skip
    if section.quantize == "fp8":
        device = device or place(section.device)
        if device.kind != "cuda" or (device.capability or (0, 0)) < _FP8_FROM:
            raise RecipeError("float8 products need an NVIDIA GPU of Hopper or newer", where="model.quantize",
                              got=f"fp8 on {device.name} ({device.title})", fix="quantize=none")  # fmt: skip


def known(storage: str) -> str:
    """The storage, if there is one of that name.

    Raises:
        RecipeError: with the names that there are.
    """
    if storage not in ("none", *_PACKAGES):
        raise RecipeError("no such storage", where="quantize", got=storage, expected=", ".join(["none", *_PACKAGES]))
    return storage


def told(section: ModelSection) -> str:
    """The storage in words, where it is not the plain one."""
    return "" if section.quantize == "none" else f", stored in {section.quantize}"


def loading_options(section: ModelSection, dtype: Any) -> dict[str, Any]:
    """What `from_pretrained` is told; bitsandbytes quantises while it loads and computes in `dtype`.
    Bytes that are to be spread over processes lie in numbers of the kind that stand beside them."""
    if _PACKAGES.get(section.quantize) != "bitsandbytes":
        return {}
    from transformers import BitsAndBytesConfig

    if section.quantize == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=section.quantize, bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True, **({"bnb_4bit_quant_storage": "float32"} if spread() else {}),
        )
    }  # fmt: skip


def after_loading(section: ModelSection, model: Any) -> Any:
    """The model as adapters are trained and used on it: torchao's storages are made from the loaded weights, all is
    frozen, and beside bitsandbytes' layers what has 16 bits goes to float32.

    Raises:
        RecipeError: a layer does not fit the storage.
    """
    if section.quantize == "none":
        return model
    if section.quantize == "fp8":
        return in_fp8(model)
    from ...core.layers.kbit import prepare_model_for_kbit_training

    if _PACKAGES[section.quantize] == "torchao":
        _with_torchao(section.quantize, model)
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def in_fp8(model: Any, *, emulate: bool = False) -> Any:
    """The model, frozen, with products in float8, scaled a row (Micikevicius et al. 2022, arXiv 2209.05433), forward
    and towards inputs; its weights stay in bfloat16 and are rounded at each use, its head and embeddings as they are.

    Args:
        emulate: compute what float8 would give on devices without it.

    Raises:
        RecipeError: the weights are in another dtype, or a layer's sizes do not divide.
    """
    import torch
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    body = {id(m): n for n, m in model.base_model.named_modules() if isinstance(m, torch.nn.Linear)}
    linear = [m for m in model.modules() if id(m) in body]
    for layer in linear:
        if layer.weight.dtype != torch.bfloat16:
            raise RecipeError("float8 products are made of bfloat16", where="model.dtype", got=layer.weight.dtype,
                              fix="dtype=bfloat16")  # fmt: skip
        if layer.in_features % _EIGHT_BIT_GROUP or layer.out_features % _EIGHT_BIT_GROUP:
            raise RecipeError("the layer's sizes do not divide into groups",
                              where=f"model.quantize at {body[id(layer)]}",
                              got=f"{layer.in_features} x {layer.out_features}",
                              expected=f"multiples of {_EIGHT_BIT_GROUP}", fix="quantize=none")  # fmt: skip
    config = dataclasses.replace(Float8LinearConfig.from_recipe_name("rowwise"), emulate=emulate)
    model.requires_grad_(False)
    return convert_to_float8_training(model, config=config, module_filter_fn=lambda m, _: id(m) in body)


def _with_torchao(storage: str, model: Any) -> None:
    import torch
    import torchao.quantization as ao

    body = {id(m): n for n, m in model.base_model.named_modules() if isinstance(m, torch.nn.Linear)}
    linear = [m for m in model.modules() if id(m) in body]
    odd = next((m for m in linear if storage == "int4wo" and m.in_features % GROUP), None)
    if odd is not None:
        raise RecipeError("the layer's inputs do not divide into groups", where=f"model.quantize at {body[id(odd)]}",
                          got=odd.in_features, expected=f"a multiple of {GROUP}", fix="quantize=int8wo")  # fmt: skip
    config: Any = ao.Int8WeightOnlyConfig()
    if storage == "int4wo":
        # Int4WeightOnlyConfig packs two numbers in a byte, but has no kernel for CPUs, and bfloat16 only on GPUs.
        config = ao.IntxWeightOnlyConfig(
            weight_dtype=torch.int4,  # type: ignore[attr-defined]
            granularity=ao.PerGroup(GROUP),
        )
    ao.quantize_(model, config, filter_fn=lambda module, name: id(module) in body)
