"""LoRA-GA: start so that the first step of LoRA moves W as a step of full fine-tuning would.

    G = dLoss/dW = U S Vᵀ;   "ArB2r": A0 = c V_{1..r}ᵀ, B0 = c U_{r+1..2r};   y = (W - s·B0 A0 + s·B A) x
    "stable": c = out^¼ / γ^½;   "gd_scale": c = 1/s;   "unit": c = 1;
    "weight_svd": c = √(mean of W's top r singular values / s)

Wang, Yu, Li 2024, arXiv 2407.05000 (section 3; "stable" is their choice). The reference leaves A0 orthonormal and
multiplies B0's columns by the gradient's singular values, so its start shrinks with the loss's scale; here both factors
are scaled alike, as in the paper. It loads such files without the subtraction; afina writes plain LoRA of rank 2r.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from . import gather
from .start import Start, check_finite, check_rank

PUBLIC = ("LoraGAConfig", "preprocess_loraga")
DIRECTIONS = ("ArBr", "A2rBr", "ArB2r", "random")
SCALES = ("stable", "weight_svd", "gd_scale", "unit")


@dataclass
class LoraGAConfig:
    """Settings of LoRA-GA; fields as in the reference.

    Attributes:
        direction: which of the first 2r singular directions A and B take: "ArB2r" (A the first r, B the next), "A2rBr"
            (the other way round), "ArBr" (B the 1st, 3rd, ..., A the 2nd, 4th, ...), "random" (a random half each).
        scale: the size of the factors, see the module's formula.
        stable_gamma: γ of "stable"; larger means a smaller start.

    Raises:
        ConfigError: no such direction or scale, or `stable_gamma` is not positive.
    """

    direction: Literal["ArBr", "A2rBr", "ArB2r", "random"] = "ArB2r"
    scale: Literal["stable", "weight_svd", "gd_scale", "unit"] = "stable"
    stable_gamma: int = 16

    def __post_init__(self) -> None:
        for key, known in (("direction", DIRECTIONS), ("scale", SCALES)):
            if getattr(self, key) not in known:
                raise ConfigError("unknown choice", where=f"lora_ga_config.{key}", got=getattr(self, key),
                                  expected=", ".join(known))  # fmt: skip
        if self.stable_gamma <= 0:
            raise ConfigError("out of range", where="stable_gamma", got=self.stable_gamma, expected="> 0")


def lora_ga(weight_OI: Tensor, rank: int, scale: float, gradient_OI: Tensor, options: LoraGAConfig) -> Start:
    """Singular directions of the loss's gradient as LoRA factors.

    Args:
        gradient_OI: dLoss/dW at any scale.

    Raises:
        ConfigError: 2r exceeds min(in, out), or the gradient is not finite or zero.
    """
    check_rank(weight_OI, rank, needed=2 * rank)
    gradient_OI = gradient_OI.to(weight_OI)
    check_finite(gradient_OI, "the gradient", "lora_ga")
    if not gradient_OI.any():
        raise ConfigError("the gradient is zero, so it has no directions", where="lora_ga",
                          fix="check that train_step calls backward on a loss that depends on the layer")  # fmt: skip
    U, _, Vh = torch.linalg.svd(gradient_OI, full_matrices=False)
    for_a, for_b = _directions(options.direction, rank)
    size = _size(weight_OI, rank, scale, options)
    return Start(size * Vh[for_a], size * U[:, for_b], subtract=True)


def _directions(direction: str, rank: int) -> tuple[Tensor, Tensor]:
    """The indices, among the first 2r, that A and B take."""
    first, second = torch.arange(2 * rank).chunk(2)
    mixed = torch.randperm(2 * rank)
    table = {
        "ArB2r": (first, second),
        "A2rBr": (second, first),
        "ArBr": (2 * first + 1, 2 * first),
        "random": (mixed[:rank], mixed[rank:]),
    }
    return table[direction]


def _size(weight_OI: Tensor, rank: int, scale: float, options: LoraGAConfig) -> float:
    if options.scale == "weight_svd":
        return float((torch.linalg.svdvals(weight_OI)[:rank].mean() / scale).sqrt())
    table = {"stable": weight_OI.shape[0] ** 0.25 / options.stable_gamma**0.5, "gd_scale": 1 / scale, "unit": 1.0}
    return float(table[options.scale])


def preprocess_loraga(
    model: nn.Module,
    lora_config: Any,
    train_step: Callable[[], Any],
    cache_file: str | None = None,
) -> None:
    """Gather the loss's gradients for the targets' weights; afterwards `get_peft_model(model, lora_config)` finds them.

    They are kept as `lora_config.statistics` (module name -> (out, in), float32), which is never saved, and accumulate
    over all backward passes. Memory: out · in float32 numbers a target. Weights, gradients and flags stay as they were.

    Args:
        model: the plain model, not quantised.
        lora_config: with `init_lora_weights="lora_ga"`; takes the gradients.
        train_step: runs the model forward and the loss backward on sample data, as often as it likes.
        cache_file: read if it exists, else written (safetensors).

    Raises:
        ConfigError: a target got no gradient, or is quantised.
    """
    modules = gather.linear_targets(model, lora_config)
    weights = {n: gather.weight_of(m) for n, m in modules.items()}
    if cache_file is not None and Path(cache_file).exists():
        lora_config.statistics = gather.load_statistics(cache_file, {n: w.shape for n, w in weights.items()})
        return
    quantised = next((n for n, w in weights.items() if w.quantised), None)
    if quantised:
        raise ConfigError("a quantised weight has no gradient", where=quantised, got=weights[quantised].weight.dtype,
                          fix="gather on the unquantised model")  # fmt: skip
    found = _gradients(model, {n: w.weight for n, w in weights.items()}, train_step)
    lora_config.statistics = {n: w.canonical(found[n]) for n, w in weights.items()}
    if cache_file is not None:
        gather.save_statistics(cache_file, lora_config.statistics)


def _gradients(
    model: nn.Module, parameters: dict[str, nn.Parameter], train_step: Callable[[], Any]
) -> dict[str, Tensor]:
    sums: dict[int, Tensor] = {}

    def take(parameter: Tensor) -> None:
        assert parameter.grad is not None  # summed in float32, and at once, so that the model's own .grad never grows
        sums[id(parameter)] = sums.get(id(parameter), 0) + parameter.grad.float()
        parameter.grad = None

    hooks: list[Any] = []
    with gather.requiring_grad(model, parameters.values()), torch.enable_grad():
        try:
            once: dict[int, Any] = {id(p): p for p in parameters.values()}
            hooks += [p.register_post_accumulate_grad_hook(take) for p in once.values()]
            train_step()
        finally:
            for hook in hooks:
                hook.remove()
    gather.check_seen([n for n, p in parameters.items() if id(p) in sums], parameters, "gradient")
    return {n: sums[id(p)] for n, p in parameters.items()}
