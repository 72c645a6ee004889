"""PEANuT: the weight update as a small network of the weight itself.

    ΔW = s · net(W),   net on the rows of Wᵀ: B (dec ∘ enc)(σ(A ·)), every decoder step adding its encoder step's input

Zhong et al. 2024, arXiv 2410.01870. B starts at zero. Trainable: 2 r · out + 2 depth r². Mergeable. Layers: Linear,
Conv1D, attention, 2-D parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import DeltaWeight, Site

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
}


@dataclass(kw_only=True)
class PeanutConfig(LayerConfig):
    """Configuration of PEANuT; fields as in the reference.

    Attributes:
        r: width of the network.
        depth: encoder steps, and as many decoder steps.
        act_fn: σ.
        scaling: s.
    """

    r: int = bounded(32, ge=1, le=2**20)
    depth: int = bounded(0, ge=0, le=64)
    act_fn: Literal["relu", "gelu", "tanh", "sigmoid", "silu"] = "relu"
    scaling: float = 1.0
    init_weights: bool = True

    default_learning_rate: ClassVar[float] = 1e-3


@register("PEANUT", PeanutConfig)
class Peanut(DeltaWeight):
    """`peanut_A`: (r, out); `peanut_B`: (out, r); encoders and decoders: `depth` matrices of (r, r) each."""

    steady: ClassVar[bool] = True
    prefix = "peanut_"
    kinds = frozenset({"linear", "attention", "parameter"})
    disk_names: ClassVar[Mapping[str, str]] = {"peanut_A": "peanut_A.weight", "peanut_B": "peanut_B.weight"}

    def __init__(self, site: Site, config: PeanutConfig) -> None:
        super().__init__(site, config)
        out = site.base.out_features
        self.scaling = self.initial_scaling = config.scaling
        self.activation = _ACTIVATIONS[config.act_fn]
        self.peanut_A, self.peanut_B = site.empty(config.r, out), site.zeros(out, config.r)
        options = {"device": site.device, "dtype": site.dtype}
        steps = [nn.Linear(config.r, config.r, bias=False, **options) for _ in range(2 * config.depth)]
        self.peanut_encoders = nn.ModuleList(steps[: config.depth])
        self.peanut_decoders = nn.ModuleList(steps[config.depth :])
        nn.init.kaiming_uniform_(self.peanut_A, a=math.sqrt(5))
        if not config.init_weights:
            nn.init.kaiming_uniform_(self.peanut_B, a=math.sqrt(5))

    def delta(self, weight: Tensor) -> Tensor:
        hidden = self.activation(F.linear(weight.T, self.peanut_A))
        passed = []
        for step in self.peanut_encoders:
            passed.append(hidden)
            hidden = self.activation(step(hidden))
        for step in self.peanut_decoders:
            hidden = self.activation(step(hidden)) + passed.pop()
        return self.scaling * F.linear(hidden, self.peanut_B).T
