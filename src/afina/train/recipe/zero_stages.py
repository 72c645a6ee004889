"""DeepSpeed's engine, as a recipe wants it: its settings, and what it cannot do."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ...devices.place import place, scales_loss
from ...errors import RecipeError
from .sections import Recipe

STAGES: Mapping[str, int] = MappingProxyType({"zero2": 2, "zero3": 3, "zero3_offload": 3})
"""`distributed` -> ZeRO's stage: what is partitioned beside the optimizer's state is gradients (2), and weights (3)."""
INSTALL = "pip install wheel ninja; DS_BUILD_OPS=0 pip install --no-build-isolation 'afina[deepspeed]'"
ELEMENTWISE = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop")
"""Optimizers that treat every number by itself, so that a flat part of all of them is no other than the whole."""
_NOT_MOVED = ("int8wo", "int4wo")
"""Torchao's storages: the engine moves the whole model to its device, where torch would have to swap their tensors."""


def is_installed() -> bool:
    """Whether DeepSpeed is."""
    return importlib.util.find_spec("deepspeed") is not None


def partitions_weights(recipe: Recipe) -> bool:
    """Whether every process is to have a part of the weights."""
    return STAGES.get(recipe.distributed) == 3


def engine_settings(recipe: Recipe) -> dict[str, Any] | None:
    """What transformers' trainers are told of the engine; None where none is wanted.

    Adapters are float32 beside a base of any dtype, so the engine casts nothing.
    """
    stage = STAGES.get(recipe.distributed)
    if stage is None:
        return None
    if place(recipe.model.device).kind == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it takes a GPU that it finds, whatever the recipe says
    zero: dict[str, Any] = {"stage": stage}
    if recipe.distributed == "zero3_offload":
        zero |= {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}
    return {
        "zero_optimization": zero, "bf16": {"enabled": False}, "fp16": {"enabled": False},
        **dict.fromkeys(("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto"),
        # The trainer's optimizer, also on the host: DeepSpeed's own would have to be compiled there.
        "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
    }  # fmt: skip


def check_engine(recipe: Recipe) -> None:
    """Refuse what DeepSpeed's engine would do otherwise than one process, or not at all.

    Raises:
        RecipeError: names the setting.
    """
    if recipe.distributed not in STAGES:
        return
    if not is_installed():
        raise RecipeError("DeepSpeed is not installed", where="distributed", got=recipe.distributed, fix=INSTALL)
    t = recipe.training
    if t.optimizer not in ELEMENTWISE:
        raise RecipeError("under ZeRO an optimizer sees flat parts of many tensors at once", where="training.optimizer",
                          got=t.optimizer, expected=", ".join(ELEMENTWISE))  # fmt: skip
    if t.bf16 or scales_loss(place(recipe.model.device), recipe.model.dtype):
        key, got = ("training.bf16", "true") if t.bf16 else ("model.dtype", recipe.model.dtype)
        raise RecipeError("under DeepSpeed nothing is autocast, and no loss scaled", where=key, got=got,
                          fix="model.dtype=bfloat16: a base in 16 bits, adapters in float32")  # fmt: skip
    if recipe.model.quantize in _NOT_MOVED:
        raise RecipeError("DeepSpeed cannot take over a base in torchao's storage", where="model.quantize",
                          got=recipe.model.quantize, fix="nf4, fp4 or int8 with zero2; or distributed=ddp")  # fmt: skip
