"""LoRA: the weight update as a product of two thin matrices.

    y = W x + s · B A dropout(x),   ΔW = s · B A,   s = alpha / r (rsLoRA: alpha / sqrt(r))

Hu et al. 2021, arXiv 2106.09685; rsLoRA: Kalajdzievski 2023, arXiv 2312.03732. Starts that the papers subtract from W
(PiSSA, OLoRA, CorDA, LoRA-GA) are kept as a frozen pair, ΔW = s · (B A - B0 A0), so that W keeps its bits.
Trainable: r · (in + out) a layer (convolution: r · (in · kernel + out); experts: times their number). Mergeable, except
grouped convolutions. Layers: Linear, Conv1D, Conv1d/2d/3d, Embedding, MultiheadAttention, 2-D and 3-D parameters.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.adapter import Adapter, DeltaWeight, Site, Tied
from ...core.config import LayerConfig, bounded, register
from ...core.patterns import value_for
from ...core.view import View
from ...errors import AfinaWarning, ConfigError, NotMergeable
from .. import starts
from ..selective.trainable_tokens import TrainableTokensConfig
from ..initialisers.corda import CordaConfig
from ..initialisers.eva import EvaConfig
from ..initialisers.loftq import LoftQConfig
from ..initialisers.lora_ga import LoraGAConfig


@dataclass(kw_only=True)
class LoraConfig(LayerConfig):
    """Configuration of LoRA; fields as in the reference."""

    r: int = bounded(8, ge=1, le=2**20)
    lora_alpha: int | float = bounded(8, gt=0, le=1e9)
    lora_dropout: float = bounded(0.0, ge=0, lt=1)
    fan_in_fan_out: bool = False
    bias: str = "none"
    use_rslora: bool = False
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"bounds": {"ge": 1}})
    alpha_pattern: dict[str, int | float] = field(default_factory=dict, metadata={"bounds": {"gt": 0}})
    use_dora: bool = False
    lora_bias: bool = False
    target_parameters: list[str] | None = None
    loftq_config: dict[str, Any] = field(default_factory=dict)
    eva_config: EvaConfig | None = None
    corda_config: CordaConfig | None = None
    lora_ga_config: LoraGAConfig | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    ensure_weight_tying: bool = False
    default_learning_rate: ClassVar[float] = 2e-4
    foreign: ClassVar[Mapping[str, bool]] = {
        **dict.fromkeys(
            ("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication",
             "megatron_config", "monteclora_config", "use_bdlora", "use_qalora"), True,
        ),
        **dict.fromkeys(("megatron_core", "qalora_group_size", "runtime_config", "velora_config"), False),
    }  # fmt: skip

    def __post_init__(self) -> None:
        if isinstance(self.loftq_config, LoftQConfig):
            self.loftq_config = asdict(self.loftq_config)
        super().__post_init__()
        if self.bias not in ("none", "all", "lora_only"):
            raise ConfigError("unknown choice", where="bias", got=self.bias, expected="none, all or lora_only")
        if self.lora_bias and self.use_dora:
            raise ConfigError("it cannot be combined with use_dora", where="lora_bias", got=True)
        starts.check_name(self.init_lora_weights)

    def companions(self) -> list[LayerConfig]:
        wanted = self.trainable_token_indices
        by_layer = wanted if isinstance(wanted, dict) else {"": wanted} if wanted else {}
        return [TrainableTokensConfig(token_indices=ids, target_modules=[layer] if layer else None,
                                      disk_folder="token_adapter.") for layer, ids in by_layer.items()]  # fmt: skip

    def rank_at(self, name: str) -> int:
        """The rank at a module, by `rank_pattern`."""
        return int(value_for(name, self.rank_pattern, self.r))

    def scaling_at(self, name: str) -> float:
        """alpha / r (or alpha / sqrt r) at a module, by `alpha_pattern` and `rank_pattern`."""
        alpha, rank = value_for(name, self.alpha_pattern, self.lora_alpha, "alpha_pattern"), self.rank_at(name)
        return float(alpha) / (math.sqrt(rank) if self.use_rslora else rank)


@register("LORA", LoraConfig)
class Lora(DeltaWeight):
    """A: (r, in, *kernel), B: (out, r, *ones); embedding A: (r, vocabulary), B: (dim, r)."""

    prefix = "lora_"
    reference_attributes = frozenset({"r", "lora_alpha", "scaling", "lora_dropout"})

    def __init__(self, site: Site, config: LoraConfig) -> None:
        super().__init__(site, config)
        base = site.base
        self.r, self.scaling = config.rank_at(site.name), config.scaling_at(site.name)
        self.initial_scaling = self.scaling
        self.lora_alpha = value_for(site.name, config.alpha_pattern, config.lora_alpha, "alpha_pattern")
        self.lora_dropout = nn.Dropout(config.lora_dropout)
        self.groups = base.groups
        # The reference adds the update of attention's output projection twice; that is what its files mean.
        self.times = 2 if site.inside_target else 1
        self._check_options(site, config)
        if self.r % self.groups:
            raise ConfigError("must be a multiple of the convolution's groups", where=f"r at {site.name}", got=self.r,
                              expected=f"a multiple of {self.groups}")  # fmt: skip
        shape_a, shape_b = self._shapes(base.shape, base.kind)
        self.lora_A, self.lora_B = site.empty(*shape_a), site.empty(*shape_b)
        self.lora_bias = site.zeros(base.out_features) if config.lora_bias else None
        self.embedding = base.kind == "embedding"
        self.pair: tuple[str, str] | None = None
        self.ensure_tied = config.ensure_weight_tying
        self.late_start: Callable[[], Any] | None = None
        self.start_name = config.init_lora_weights
        self.untrained = frozenset() if self.embedding else starts.freezes(self.start_name)
        self._start(site, config)
        for name in self.untrained:
            self.get_parameter(name).requires_grad_(False)

    def _check_options(self, site: Site, config: LoraConfig) -> None:
        kind = site.base.kind
        if config.lora_bias and (site.inside_target or kind in ("embedding", "attention", "experts", "parameter")):
            raise ConfigError("this layer has no place for a bias", where=f"lora_bias at {site.name}", got=True)
        if config.lora_dropout and kind in ("experts", "parameter"):
            raise ConfigError("the input of this layer cannot be dropped out", where=f"lora_dropout at {site.name}",
                              got=config.lora_dropout, expected=0)  # fmt: skip
        if config.lora_dropout and kind == "attention":
            warnings.warn(f"lora_dropout has no effect at {site.name}: attention is given whole weights", AfinaWarning,
                          stacklevel=2)  # fmt: skip

    def _shapes(self, shape: tuple[int, ...], kind: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if kind == "experts":
            experts, out, width = shape
            return (experts * self.r, width), (out, experts * self.r)
        out, width, *kernel = shape
        # With groups, A sees every input channel and B is grouped: the reference's layout.
        return (self.r, width * self.groups, *kernel), (out, self.r // self.groups, *(1 for _ in kernel))

    def _start(self, site: Site, config: LoraConfig) -> None:
        if self.lora_A.is_meta:
            if starts.subtracts(config.init_lora_weights):
                self._hold_pair(torch.empty_like(self.lora_A), torch.empty_like(self.lora_B))
                self.late_start = lambda: starts.start(config, site, self.r, self.scaling)
            return
        A, B = self.lora_A, self.lora_B
        if self.embedding and config.init_lora_weights is not False:
            nn.init.zeros_(A)
            nn.init.normal_(B)
            return
        start = starts.start(config, site, self.r, self.scaling)
        if start is not None:
            values = start.A_RI.to(A.dtype), start.B_OR.to(B.dtype)
            self.lora_A, self.lora_B = (nn.Parameter(v.clone().contiguous().to(site.base.device)) for v in values)
            if start.subtract:
                self._hold_pair(self.lora_A.detach().clone(), self.lora_B.detach().clone())
            return
        if config.init_lora_weights == "gaussian":
            nn.init.normal_(A, std=1 / self.r)
        else:
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        if config.init_lora_weights is False:
            nn.init.normal_(B, std=1 / self.r)
        else:
            nn.init.zeros_(B)

    def _hold_pair(self, A0: Tensor, B0: Tensor) -> None:
        self.lora_A0, self.lora_B0 = nn.Parameter(A0, requires_grad=False), nn.Parameter(B0, requires_grad=False)
        self.pair = ("lora_A0", "lora_B0")

    def tied(self, site: Site) -> Adapter | None:
        return TiedLora(site, self) if self.ensure_tied else None

    # -- mathematics ------------------------------------------------------------------------------------------------

    def factors(self) -> tuple[Tensor, Tensor]:
        """(A, B) with the frozen start, if any, stacked behind: B A = B_t A_t - B0 A0."""
        if self.pair is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.lora_A0]), torch.cat([self.lora_B, -self.lora_B0], dim=1)

    def delta(self, weight: Tensor) -> Tensor:
        A, B = self.factors()
        if self.groups > 1:
            raise NotMergeable("LoRA on a grouped convolution mixes groups, which no grouped weight can hold",
                               where=type(self).__name__)  # fmt: skip
        if weight.dim() == 3 and A.dim() == 2:
            experts = weight.shape[0]
            A_ERI = A.view(experts, self.r, -1)
            B_EOR = B.view(B.shape[0], self.r, experts).permute(2, 0, 1)
            return self.scaling * (B_EOR @ A_ERI)
        return self.times * self.scaling * (B.flatten(1) @ A.flatten(1)).view(weight.shape)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.lora_bias is not None:
            extra = self.scaling * self.lora_bias
            bias = extra if bias is None else bias + extra
        return weight + self.delta(weight), bias

    def forward(self, inner: View, x: Any) -> Any:
        if not inner.base.additive:
            return super().forward(inner, x)
        A, B = self.factors()
        dropped = x if self.embedding else self.lora_dropout(x)
        out = inner(x) + self.times * self.scaling * inner.base.low_rank(dropped, A, B)
        if self.lora_bias is not None:
            shape = (-1, *(1 for _ in range(A.dim() - 2)))
            out = out + self.scaling * self.lora_bias.view(shape)
        return out

    # -- on disk ----------------------------------------------------------------------------------------------------

    @property
    def disk_names(self) -> Mapping[str, str]:  # type: ignore[override]
        """Embeddings have names of their own; a start pair is written as ranks r..2r of A and B."""
        if self.embedding:
            return {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B", "lora_bias": "lora_embedding_B.bias"}
        return {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "lora_bias": "lora_B.bias"}

    def frozen(self) -> frozenset[str]:
        return frozenset(self.pair or ()) | self.untrained

    def disk_state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.pair is None:
            return super().disk_state(own)
        rest = {n: t for n, t in own.items() if n not in ("lora_A0", "lora_B0")}
        rest["lora_A"] = torch.cat([own["lora_A"], own["lora_A0"]])
        rest["lora_B"] = torch.cat([own["lora_B"], -own["lora_B0"]], dim=1)
        return super().disk_state(rest)

    def disk_shapes(self, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        shapes = super().disk_shapes(found)
        if self.pair is not None and found.get("lora_A.weight", ())[:1] == (self.r,):
            # A file of the reference without the start, which is computed again from the base.
            starts.refuse_without_start(self.start_name, "init_lora_weights")
            shapes |= {"lora_A.weight": tuple(self.lora_A.shape), "lora_B.weight": tuple(self.lora_B.shape)}
        return shapes

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        A, B = tensors.get("lora_A.weight"), tensors.get("lora_B.weight")
        late, self.late_start = self.late_start, None
        if self.pair is None or A is None or B is None or A.shape[0] == self.r:
            if late is not None:
                start = late()
                self.assign({"lora_A0": start.A_RI, "lora_B0": start.B_OR})
            own = {o: d for o, d in self.disk_names.items() if d in tensors}
            known = {n: n for n in self.state_dict() if n not in self.disk_names and n in tensors}
            return self.assign({o: tensors[d] for o, d in (own | known).items()})
        rest = {n: t for n, t in tensors.items() if n not in ("lora_A.weight", "lora_B.weight")}
        own_names = {d: o for o, d in self.disk_names.items()}
        self.assign({own_names.get(n, n): t for n, t in rest.items()})
        self.assign(
            {"lora_A": A[: self.r], "lora_A0": A[self.r :], "lora_B": B[:, : self.r], "lora_B0": -B[:, self.r :]}
        )

    @classmethod
    def disk_config(cls, config: Any) -> dict[str, Any]:
        """A start that was subtracted is written as plain LoRA of twice the rank, which every reader understands."""
        values: dict[str, Any] = config.to_dict()
        if starts.subtracts(config.init_lora_weights):
            grow = math.sqrt(2) if config.use_rslora else 2
            values |= {
                "init_lora_weights": True, "r": 2 * config.r, "lora_alpha": grow * config.lora_alpha,
                "rank_pattern": {k: 2 * v for k, v in config.rank_pattern.items()},
                "alpha_pattern": {k: grow * v for k, v in config.alpha_pattern.items()},
            }  # fmt: skip
        return values


class TiedLora(Tied):
    """The embedding's update on the head that shares its weight; stored as the head's own A = Bᵀ and B = Aᵀ."""

    def disk_state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        A, B = self.sources[0].lora_A, self.sources[0].lora_B
        return {"lora_A.weight": B.T, "lora_B.weight": A.T}  # type: ignore[operator]

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The embedding's adapter has them."""
