"""Starts of LoRA's factors that are computed: from the weight, from data, or from gradients. One file each.

A start is a pure function of plain tensors and never touches the base: what a paper subtracts from W, the adapter
keeps as a frozen copy of its own start. The default start and "gaussian" need no computation; the layer draws them
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ...errors import ConfigError, did_you_mean
from .corda import CordaConfig, corda
from .eva import eva
from .loftq import loftq, loftq_factors
from .lora_ga import LoraGAConfig, lora_ga
from .mica import mica
from .olora import olora
from .orthogonal import orthogonal
from .pissa import pissa
from .start import Request, Start, check_finite, settings

__all__ = [
    "STARTS", "Start", "corda", "eva", "initialise", "loftq", "loftq_factors", "lora_ga", "mica", "olora", "orthogonal",
    "pissa",
]  # fmt: skip


def _gathered(q: Request, call: str) -> Any:
    """A layer's statistics.

    Raises:
        ConfigError: there are none.
    """
    if q.statistics is None:
        raise ConfigError("this start has nothing to start from", where=f"init_lora_weights={q.name!r}",
                          got="no statistics for this layer",
                          fix=f"call {call} first; a trained adapter is loaded from plain LoRA of rank 2r")  # fmt: skip
    return q.statistics


def _pissa(q: Request) -> Start:
    niter = q.name.removeprefix("pissa").removeprefix("_niter_")
    return pissa(q.weight_OI, q.rank, q.scale, niter=int(niter) if niter else None)


def _corda(q: Request) -> Start:
    method = settings(CordaConfig, q.config.corda_config).corda_method
    covariance_II = _gathered(q, "preprocess_corda(model, config, run_model)")
    return corda(q.weight_OI, q.rank, q.scale, covariance_II, method=method)


def _lora_ga(q: Request) -> Start:
    gradient_OI = _gathered(q, "preprocess_loraga(model, config, train_step)")
    return lora_ga(q.weight_OI, q.rank, q.scale, gradient_OI, settings(LoraGAConfig, q.config.lora_ga_config))


def _loftq(q: Request) -> Start:
    start: Start = _gathered(q, "preprocess_loftq(model, config)")
    return start


def _eva(q: Request) -> Start | None:
    # Without directions it is the default until initialize_lora_eva_weights makes the adapter anew.
    return None if q.statistics is None else eva(q.weight_OI, q.rank, q.statistics)


STARTS: Mapping[str, Callable[[Request], Start | None]] = MappingProxyType({
    "orthogonal": lambda q: orthogonal(q.weight_OI, q.rank),
    "pissa": _pissa,
    "pissa_niter_N": _pissa,
    "olora": lambda q: olora(q.weight_OI, q.rank),
    "loftq": _loftq,
    "eva": _eva,
    "corda": _corda,
    "lora_ga": _lora_ga,
    "mica": lambda q: mica(q.weight_OI, q.rank),
})  # fmt: skip
"""Name -> how it is computed; N stands for a number."""


def initialise(
    name: str | bool,
    weight_OI: Tensor,
    rank: int,
    scale: float,
    *,
    config: Any,
    statistics: Tensor | Start | Mapping[str, Tensor] | None = None,
) -> Start | None:
    """The start that `init_lora_weights` names, or None where the layer draws it itself (true, false, "gaussian").

    Args:
        weight_OI: the base weight, canonical, dequantised.
        rank: r.
        scale: alpha / r or alpha / √r.
        config: the LoRA config, for the sub-configs.
        statistics: what was gathered for this layer.

    Raises:
        ConfigError: an unknown name, missing statistics, a rank that does not fit, a weight that is not finite.
    """
    if isinstance(name, bool) or name == "gaussian":
        return None
    head, _, number = name.rpartition("_")
    compute = STARTS.get(f"{head}_N" if number.isdigit() else name)
    if compute is None or name.endswith("_N"):
        raise ConfigError("unknown start", where="init_lora_weights", got=name,
                          expected=", ".join(["true", "false", "gaussian", *STARTS]),
                          fix=did_you_mean(name, STARTS))  # fmt: skip
    check_finite(weight_OI, "the base weight", f"init_lora_weights={name!r}")
    return compute(Request(weight_OI.detach().float(), rank, scale, config, statistics, name))
