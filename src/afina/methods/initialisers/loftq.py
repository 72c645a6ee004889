"""LoftQ: quantise W and start LoRA at the part of W that quantisation loses.

    min over Q, A, B of |W - Q - s·B A|:   Q <- quantise(W - s·B A),   s·B A <- best rank-r part of W - Q;   repeat

Li, Yu, Liang, He, Karampatziakis, Chen, Zhao 2023, arXiv 2310.08659. The quantiser is normal float with blocks of 64.
Of the iterates the one with the smallest error is kept; the paper keeps the last. s is taken into account; the
reference ignores it.

The adapter belongs to the quantised base, which no low-rank pair can express, and a start never rewrites the base by
itself. So either call `preprocess_loftq(model, config)`, which does it by name, before `get_peft_model`, or
`replace_lora_weights_loftq` on a base that is already stored quantised. The reference (0.21.2) computes this start
with bitsandbytes on a GPU only, again at each load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.hosts.host import hosts
from ...core.layers.base_files import original_weight, weight_files
from ...errors import CheckpointError, ConfigError
from . import gather, normal_float
from .pissa import pissa
from .start import Start, check_rank, settings

PUBLIC = ("LoftQConfig", "preprocess_loftq", "replace_lora_weights_loftq")


@dataclass
class LoftQConfig:
    """Settings of LoftQ; fields as in the reference.

    Attributes:
        loftq_bits: bits of the normal-float base, 2 to 8.
        loftq_iter: alternating steps, at least 1.

    Raises:
        ConfigError: a value is out of range.
    """

    loftq_bits: int = 4
    loftq_iter: int = 1

    def __post_init__(self) -> None:
        for key, low, high in (("loftq_bits", 2, 8), ("loftq_iter", 1, 100)):
            if not low <= getattr(self, key) <= high:
                raise ConfigError("out of range", where=f"loftq_config.{key}", got=getattr(self, key),
                                  expected=f"{low} to {high}")  # fmt: skip


def loftq(weight_OI: Tensor, rank: int, scale: float, *, bits: int = 4, iters: int = 1) -> tuple[Start, Tensor]:
    """A quantised weight, and LoRA factors for what it lacks.

    Returns:
        (start, quantised_OI), with quantised_OI + scale · B A close to the weight.

    Raises:
        ConfigError: the rank exceeds min(in, out), or bits outside 2..8.
    """
    check_rank(weight_OI, rank)
    low_rank_OI = torch.zeros_like(weight_OI)
    best: tuple[float, Start, Tensor] | None = None
    for _ in range(iters):
        quantised_OI = normal_float.quantise(weight_OI - low_rank_OI, bits)
        start = loftq_factors(weight_OI, quantised_OI, rank, scale)
        low_rank_OI = scale * start.B_OR @ start.A_RI
        error = float((weight_OI - quantised_OI - low_rank_OI).norm())
        if best is None or error < best[0]:
            best = error, start, quantised_OI
    assert best is not None
    return best[1], best[2]


def loftq_factors(weight_OI: Tensor, quantised_OI: Tensor, rank: int, scale: float) -> Start:
    """LoRA factors for what a base that is already quantised lacks: the best rank-r approximation of the difference."""
    return pissa(weight_OI - quantised_OI, rank, scale)._replace(subtract=False)


def preprocess_loftq(model: nn.Module, lora_config: Any) -> None:
    """Replace the targets' weights by their normal-float values, in place and for good; keep the starts.

    The starts are kept as `lora_config.statistics` (module name -> Start), never saved, where `get_peft_model(model,
    lora_config)` finds them. The adapter that is trained afterwards belongs to this quantised model: save it too.

    Args:
        model: the plain model.
        lora_config: with `init_lora_weights="loftq"`; takes the starts.

    Raises:
        ConfigError: a rank exceeds min(in, out), or a target is quantised already.
    """
    options = settings(LoftQConfig, lora_config.loftq_config)
    statistics, quantised = {}, {}
    for name, module in gather.linear_targets(model, lora_config).items():
        weight = gather.weight_of(module)
        if weight.quantised:
            raise ConfigError("the weight is quantised already", where=name, got=type(module).__name__,
                              fix="use replace_lora_weights_loftq")  # fmt: skip
        rank, scale = lora_config.rank_at(name), lora_config.scaling_at(name)
        statistics[name], quantised[name] = loftq(
            weight.read()[0].detach().float(), rank, scale, bits=options.loftq_bits, iters=options.loftq_iter
        )
    for name, values_OI in quantised.items():
        weight = gather.weight_of(model.get_submodule(name))
        with torch.no_grad():
            weight.weight.copy_(weight.stored(values_OI))
    lora_config.statistics = statistics


def replace_lora_weights_loftq(
    peft_model: Any,
    model_path: str | Path | None = None,
    adapter_name: str = "default",
    callback: Callable[[Any, str], bool] | None = None,
) -> None:
    """Start an adapter on a quantised base at what the quantisation lost.

    Args:
        peft_model: a model with a LoRA adapter whose base is stored quantised.
        model_path: safetensors file, or folder of them, with the unquantised weights; None for the base's own folder.
        adapter_name: the adapter's name.
        callback: called after each layer with (peft_model, module name); where it returns False, the layer is rolled
            back.

    Raises:
        CheckpointError: the file is missing, or lacks a target's weight or has it in another shape.
    """
    base = peft_model.get_base_model()
    files = weight_files(model_path or getattr(getattr(base, "config", None), "_name_or_path", None))
    for name, host in hosts(base):
        adapter: Any = host.adapter(adapter_name)
        if adapter is None or not hasattr(adapter, "lora_A"):
            continue
        quantised_OI = host.base.read()[0].detach().float()
        prefix = getattr(base, "base_model_prefix", "")
        stored = original_weight(files, name, prefix).to(quantised_OI)
        weight_OI = host.base.canonical(stored)
        if weight_OI.shape != quantised_OI.shape:
            raise CheckpointError("the unquantised weight has another shape", where=name, got=tuple(weight_OI.shape),
                                  expected=tuple(quantised_OI.shape))  # fmt: skip
        start = loftq_factors(weight_OI, quantised_OI, adapter.r, adapter.scaling)
        before = adapter.lora_A.detach().clone(), adapter.lora_B.detach().clone()
        _fill(adapter, start.A_RI, start.B_OR)
        if callback is not None and not callback(peft_model, name):
            _fill(adapter, *before)


@torch.no_grad()
def _fill(adapter: Any, A_RI: Tensor, B_OR: Tensor) -> None:
    adapter.lora_A.copy_(A_RI)
    adapter.lora_B.copy_(B_OR)
