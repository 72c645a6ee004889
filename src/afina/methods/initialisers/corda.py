"""CorDA: singular directions of W weighted by how the inputs vary.

    C = mean of x xᵀ over the inputs x of the layer;   SVD(W C) = U S Vᵀ;   W = U S Vᵀ C⁻¹
    A0 = √(S_k / s) V_kᵀ C⁻¹,   B0 = U_k √(S_k / s);   y = (W - s·B0 A0 + s·B A) x

"ipm" (instruction-previewed) takes the r largest directions and learns the data's task; "kpm" (knowledge-preserved)
takes the r smallest and keeps what the data exercises. Yang et al. 2024, arXiv 2406.05223.

C is divided by its mean diagonal (the product B0 A0 does not depend on it, and so the sizes of A0 and B0 do not
depend on the scale of the data), and 0.01, doubled until C can be inverted, is added to its diagonal. The reference
divides each batch by its largest entry first, so with several batches its C weighs them unequally (measured: products
5 % apart; with one batch they agree to 1e-5). It cannot load a file that says "corda"; afina writes plain LoRA of
rank 2r, which every reader can.
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
from .pissa import balanced
from .start import Start, check_finite, check_rank, settings

PUBLIC = ("CordaConfig", "preprocess_corda")
FIRST_DAMPING, LAST_DAMPING = 0.01, 1.0


@dataclass
class CordaConfig:
    """Settings of CorDA; fields as in the reference.

    Attributes:
        cache_file, verbose, prune_temporary_fields: kept for the file format; a `cache_file` is refused.
        covariance_file: where the covariances are read from if it exists, else written to (safetensors).
        corda_method: "ipm" or "kpm".
        use_float16_for_covariance: keep the finished covariances in half precision.

    Raises:
        ConfigError: no such `corda_method`.
    """

    cache_file: str | None = None
    covariance_file: str | None = None
    corda_method: Literal["ipm", "kpm"] = "ipm"
    verbose: bool = False
    use_float16_for_covariance: bool = False
    prune_temporary_fields: bool = True

    def __post_init__(self) -> None:
        if self.corda_method not in ("ipm", "kpm"):
            raise ConfigError("unknown mode", where="corda_config.corda_method", got=self.corda_method,
                              expected="ipm or kpm")  # fmt: skip


def corda(weight_OI: Tensor, rank: int, scale: float, covariance_II: Tensor, *, method: str = "ipm") -> Start:
    """Context-oriented components of a weight as LoRA factors.

    Args:
        covariance_II: second moments of the layer's inputs, at any scale.
        method: "ipm" for the largest components, "kpm" for the smallest.

    Raises:
        ConfigError: the rank exceeds min(in, out), or the covariance is zero, not finite, or cannot be inverted.
    """
    check_rank(weight_OI, rank)
    C_II, factor_II = _invertible(covariance_II.to(weight_OI))
    U, S, Vh = torch.linalg.svd(weight_OI @ C_II, full_matrices=False)
    keep = slice(0, rank) if method == "ipm" else slice(len(S) - rank, len(S))
    V_RI = torch.cholesky_solve(Vh[keep].mT, factor_II).mT
    return balanced(U[:, keep], S[keep], V_RI, scale)


def _invertible(covariance_II: Tensor) -> tuple[Tensor, Tensor]:
    """The covariance with unit mean diagonal and as little damping as it needs, and its Cholesky factor."""
    check_finite(covariance_II, "the covariance of the layer's inputs", "corda")
    size = covariance_II.diagonal().mean()
    if not size > 0:
        raise ConfigError("the layer's inputs are all zero, so their covariance cannot be inverted", where="corda",
                          fix="run preprocess_corda on other data, or exclude the layer")  # fmt: skip
    damping = FIRST_DAMPING
    eye = torch.eye(len(covariance_II), device=covariance_II.device)
    while damping <= LAST_DAMPING:
        damped = covariance_II / size + damping * eye
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return damped, factor
        damping *= 2
    raise ConfigError("the covariance is singular even with damping", where="corda", got=f"damping {LAST_DAMPING}",
                      expected="a symmetric positive semidefinite matrix", fix="gather more varied data")  # fmt: skip


def preprocess_corda(
    model: nn.Module,
    lora_config: Any,
    run_model: Callable[[], Any] | None = None,
    hooked_model: nn.Module | None = None,
) -> None:
    """Gather the covariances of the targets' inputs; afterwards `get_peft_model(model, lora_config)` finds them.

    They are kept as `lora_config.statistics` (module name -> (in, in), float32, mean diagonal 1), which is never saved.
    Memory: in² numbers a target. The model is in eval mode during the run.

    Args:
        model: the plain model.
        lora_config: with `init_lora_weights="corda"`; takes the covariances.
        run_model: runs the model on sample data; 256 sequences of some length are enough for LLMs (the paper's choice).
        hooked_model: the model that `run_model` runs, if it is not `model`.

    Raises:
        ConfigError: a target saw no data, or inputs are not finite.
    """
    options = settings(CordaConfig, lora_config.corda_config)
    if options.cache_file is not None:
        raise ConfigError("not supported", where="corda_config.cache_file", got=options.cache_file,
                          fix="use covariance_file, which serves every rank")  # fmt: skip
    watched = hooked_model or model
    modules = gather.linear_targets(watched, lora_config)
    path = options.covariance_file
    if path is not None and Path(path).exists():
        shapes: dict[str, tuple[int, ...]] = {n: (gather.weight_of(m).in_features,) * 2 for n, m in modules.items()}
        lora_config.statistics = gather.load_statistics(path, shapes)
        return
    if run_model is None:
        raise ConfigError("there are no covariances yet", where="run_model", got=None,
                          expected="a function that runs the model on sample data")  # fmt: skip
    statistics = _covariances(watched, modules, run_model)
    if options.use_float16_for_covariance:
        statistics = {n: c.half() for n, c in statistics.items()}
    if path is not None:
        gather.save_statistics(path, statistics)
    lora_config.statistics = statistics


def _covariances(model: nn.Module, modules: dict[str, nn.Module], run_model: Callable[[], Any]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}

    def see(name: str, args: Any, kwargs: Any) -> None:
        x_NI = gather.rows_of(args, kwargs)
        if len(x_NI):
            check_finite(x_NI, "an input", name)
            sums[name] = torch.addmm(sums.get(name, x_NI.new_zeros(1, 1)), x_NI.mT, x_NI)

    with gather.watching(modules, see), gather.evaluating(model), torch.no_grad():
        run_model()
    gather.check_seen(sums, modules, "data")
    return {n: c / c.diagonal().mean().clamp_min(torch.finfo(c.dtype).tiny) for n, c in sums.items()}
