"""AdaLoRA: LoRA in the form of a singular value decomposition whose least important ranks are pruned in training.

    ΔW = s · B diag(E) A,   s = alpha / init_r;   loss + w · mean over all A, B of ||A Aᵀ - I||_F, ||Bᵀ B - I||_F

Zhang et al. 2023, arXiv 2303.10512. A rank's importance is that of its singular value plus the means of its vectors'
entries; importance is the smoothed |parameter · gradient| times its smoothed spread (section 3.2). Pruned ranks keep
their vectors and come back when their importance rises, until the budget is final. Then the surviving ranks are written
to `rank_pattern`, and a file holds only those. (Before that a file holds all ranks; the reference's would drop some.)
Call `model.update_and_allocate(step)` after `optimizer.step()` and before `zero_grad()`.
Trainable: init_r · (in · kernel + out + 1) a layer. Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d, Embedding,
MultiheadAttention, 2-D parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Site
from ...core.layers.weights import BaseWeight
from ...errors import ConfigError
from .low_rank import LowRankDelta
from .rank_budget import RankBudget

_BART = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
EVERY_PROJECTION: Mapping[str, list[str] | str] = MappingProxyType(
    {
        "t5": ["q", "k", "v", "o", "wi", "wo"],
        "mt5": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"],
        "bart": _BART,
        "opt": _BART,
        "roberta": ["query", "key", "value", "dense"],
        "deberta-v2": ["query_proj", "key_proj", "value_proj", "dense"],
    }
)
"""Where a budget is shared out over all projections, more than the usual two are offered."""


@dataclass(kw_only=True)
class AdaLoraConfig(LayerConfig):
    """Configuration of AdaLoRA; fields as in the reference.

    Attributes:
        target_r: rank that is left of a layer at the end, on average.
        init_r: rank of every layer at the start.
        tinit: steps before the first pruning.
        tfinal: last steps, in which the ranks that are left train alone.
        deltaT: steps from one pruning to the next.
        beta1: decay of the smoothed importance.
        beta2: decay of its smoothed spread.
        orth_reg_weight: w, weight of the penalty that keeps the factors orthonormal.
        total_step: steps of the whole run; must be given, and exceed tinit + tfinal.
        r: kept for the reference's files, without effect: `init_r` and `target_r` count.
        lora_alpha: s = lora_alpha / init_r.
        lora_dropout: dropout on the layer's input.
        init_lora_weights: start without changing the outputs (E = 0); False starts at random.
        rank_pattern: `NAME.lora_E` -> for each of the init_r ranks, whether it is kept; set when the budget is final.
    """

    target_r: int = bounded(8, ge=1, le=2**20)
    init_r: int = bounded(12, ge=1, le=2**20)
    tinit: int = bounded(0, ge=0)
    tfinal: int = bounded(0, ge=0)
    deltaT: int = bounded(1, ge=1)
    beta1: float = bounded(0.85, ge=0, lt=1)
    beta2: float = bounded(0.85, ge=0, lt=1)
    orth_reg_weight: float = bounded(0.5, ge=0)
    total_step: int | None = None
    r: int = bounded(8, ge=1)
    lora_alpha: int | float = bounded(8, gt=0, le=1e9)
    lora_dropout: float = bounded(0.0, ge=0, lt=1)
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_lora_weights: bool = True
    rank_pattern: dict[str, Any] | None = None
    keyed_by_module: ClassVar[tuple[str, ...]] = ()

    needs: ClassVar[Mapping[str, tuple[str | None, Any]]] = {"r": (None, "init_r and target_r count")}
    default_learning_rate: ClassVar[float] = 1e-3
    default_targets: ClassVar[Mapping[str, list[str] | str]] = EVERY_PROJECTION
    foreign: ClassVar[Mapping[str, bool]] = {
        **dict.fromkeys(
            ("alora_invocation_tokens", "arrow_config", "ensure_weight_tying", "kasa_config", "layer_replication",
             "lora_bias", "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora",
             "use_dora", "use_qalora"), True,
        ),
        **dict.fromkeys(
            ("alpha_pattern", "corda_config", "eva_config", "loftq_config", "lora_ga_config", "megatron_config",
             "megatron_core", "qalora_group_size", "runtime_config", "use_rslora", "velora_config"), False,
        ),
    }  # fmt: skip
    """`alpha_pattern` and `use_rslora` have no effect here, as in the reference."""

    def __post_init__(self) -> None:
        super().__post_init__()
        idle = self.tinit + self.tfinal
        if self.total_step is None or self.total_step <= idle:
            raise ConfigError("it must leave steps between warm-up and final phase", where="total_step",
                              got=self.total_step, expected=f"> tinit + tfinal = {idle}")  # fmt: skip
        for key, kept in (self.rank_pattern or {}).items():
            if not isinstance(kept, list) or not all(isinstance(k, bool) for k in kept) or len(kept) != self.init_r:
                raise ConfigError("must say for every rank whether it is kept", where=f"rank_pattern: {key}",
                                  got=str(kept)[:80], expected=f"{self.init_r} of true and false")  # fmt: skip

    def idle(self, model: Any, paths: Sequence[str]) -> Iterable[str]:
        names = {f"{p}.lora_E" for p in paths}
        return [f"rank_pattern: {key[:80]!r}" for key in self.rank_pattern or {} if key not in names]


@register("ADALORA", AdaLoraConfig)
class AdaLora(LowRankDelta):
    """`lora_A`: (r, in · kernel), `lora_B`: (out, r), `lora_E`: (r, 1); r is init_r, or what `rank_pattern` keeps."""

    prefix = "lora_"
    has_penalty = True

    def __init__(self, site: Site, config: AdaLoraConfig) -> None:
        super().__init__(site, config)
        self.share(site.shared)
        self.name = f"{site.name}.lora_E"
        kept = (config.rank_pattern or {}).get(self.name)
        rank = config.init_r if kept is None else sum(kept)
        self.kept: list[bool] | None = None
        """Which ranks survive, once that is final; a layer built from a pruned file has no others."""
        self.lora_A, self.lora_B = site.normal(0.02, rank, self.in_features), site.normal(0.02, self.out_features, rank)
        self.lora_E = site.zeros(rank, 1) if config.init_lora_weights else site.normal(0.02, rank, 1)
        # The reference keeps its divisor from zero this way, and its files mean that.
        self.scaling = self.initial_scaling = config.lora_alpha / (config.init_r + 1e-5)
        self.penalty_weight = config.orth_reg_weight
        self.drop(config.lora_dropout)
        if isinstance(site.shared, RankBudget) and kept is None:
            site.shared.join(self)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.scaling * self.lora_E * self.lora_A, self.lora_B

    def penalty(self) -> Tensor:
        eye = torch.eye(self.lora_A.shape[0], dtype=self.dtype, device=self.lora_A.device)
        products = self.lora_A @ self.lora_A.T, self.lora_B.T @ self.lora_B
        total = torch.stack([torch.linalg.matrix_norm(p - eye) for p in products]).sum()
        layers: int = self.shared.layers
        return self.penalty_weight * total / (2 * layers)

    @classmethod
    def build_shared(cls, config: AdaLoraConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> nn.Module:
        return RankBudget(config, len(layers))

    # -- on disk: only the ranks that survive -----------------------------------------------------------------------

    def disk_state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.kept is None:
            return dict(own)
        rows = torch.tensor(self.kept, device=own["lora_E"].device)
        return {n: t[:, rows] if n == "lora_B" else t[rows] for n, t in own.items()}

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        if self.kept is None:
            return self.assign(tensors)
        rows = torch.tensor(self.kept)
        full = {n: torch.zeros(t.shape) for n, t in self.state_dict().items()}
        for name, values in full.items():
            values[(slice(None), rows) if name == "lora_B" else rows] = tensors[name].to(values)
        self.assign(full)
