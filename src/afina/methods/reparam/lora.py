"""LoRA: the weight update as a product of two thin matrices.

    y = W x + s · B A dropout(x),   ΔW = s · B A,   s = alpha / r (rsLoRA: alpha / sqrt(r))

Hu et al. 2021, arXiv 2106.09685; rsLoRA: Kalajdzievski 2023, arXiv 2312.03732. Starts that the papers subtract from W
(PiSSA, OLoRA, CorDA, LoRA-GA) are kept as a frozen pair, ΔW = s · (B A - B0 A0), so that W keeps its bits.
Trainable: r · (in + out) a layer (convolution: r · (in · kernel + out); experts: times their number). Mergeable, except
grouped convolutions. Layers: Linear, Conv1D, Conv1d/2d/3d, Embedding, MultiheadAttention (whose output projection's
update counts twice, as in the reference up to 0.21.2; files of later releases are read as they mean it), 2-D and 3-D
parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.config import register
from ...core.hosts.adapter import Adapter, Site
from ...core.hosts.view import View
from ...core.inject.patterns import value_for
from ...core.layers.weights import BaseWeight
from ...errors import AfinaWarning, ConfigError, NotMergeable
from .. import starts
from .lora_config import LoraConfig, counts_once
from .lora_files import TiedLora
from .lora_form import LoraForm
from .lora_mlx import open_mlx
from .lora_rows import LoraByRows

LORA_CUT: Mapping[str, tuple[int | None, int | None]] = MappingProxyType(
    {"lora_A": (None, 1), "lora_A0": (None, 1), "lora_B": (0, None), "lora_B0": (0, None), "lora_bias": (0, None)}
)


@register("LORA", LoraConfig)
class Lora(LoraByRows, LoraForm):
    """A: (r, in, *kernel), B: (out, r, *ones); embedding A: (r, vocabulary), B: (dim, r)."""

    steady: ClassVar[bool] = True
    open_foreign = staticmethod(open_mlx)
    prefix = "lora_"
    attention_note = "the output projection's update counts twice, as in files of the reference up to 0.21.2"
    reference_attributes = frozenset(
        {"r", "lora_alpha", "scaling", "lora_dropout", "lora_bias", "use_dora", "use_rslora"}
    )
    reference_slots = frozenset({"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"})

    def __init__(self, site: Site, config: LoraConfig) -> None:
        super().__init__(site, config)
        base = site.base
        alpha = value_for(site.names, config.alpha_pattern, config.lora_alpha, "alpha_pattern")
        scaling, start = config.scaling_at(site.names), config.init_lora_weights
        embedding, experts = base.kind == "embedding", base.kind == "experts"
        # Up to its release 0.21.2 the reference adds the update of attention's output projection twice; that is what
        # such files mean, and what is written here.
        times = 2 if site.inside_target else 1
        self.hold(r=config.rank_at(site.names), scaling=scaling, initial_scaling=scaling, lora_alpha=alpha, times=times,
                  use_dora=config.use_dora, use_rslora=config.use_rslora,
                  counted_once=counts_once(config.peft_version),
                  groups=base.groups, embedding=embedding, experts=experts, ensure_tied=config.ensure_weight_tying,
                  pair=None, late_start=None, start_name=start,
                  untrained=frozenset() if embedding else starts.freezes(start))  # fmt: skip
        self.drop(config.lora_dropout)
        self._check_options(site, config)
        if self.r % self.groups:
            raise ConfigError("must be a multiple of the convolution's groups", where=f"r at {site.name}", got=self.r,
                              expected=f"a multiple of {self.groups}")  # fmt: skip
        shape_a, shape_b = self._shapes(site, config)
        self.lora_A, self.lora_B = site.empty(*shape_a), site.empty(*shape_b)
        self.lora_bias = site.zeros(base.out_features) if config.lora_bias else None
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

    def _shapes(self, site: Site, config: LoraConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        shape = site.base.shape
        if site.base.kind == "experts":
            experts, out, width = shape
            return (experts * self.r, width), (out, experts * self.r)
        out, width, *kernel = shape
        # With groups, A sees every input channel and B is grouped: the reference's layout.
        return (self.r, width * self.groups, *kernel), (out, self.r // self.groups, *(1 for _ in kernel))

    def in_reference(self, name: str) -> Any:
        return self.lora_bias is not None if name == "lora_bias" else super().in_reference(name)

    def tied(self, site: Site) -> Adapter | None:
        return TiedLora(site, self) if self.ensure_tied and site.base.kind == "linear" else None

    @property
    def is_product(self) -> bool:
        return type(self).delta is Lora.delta and type(self).merged is Lora.merged

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
        if self.experts and self.is_product and not torch.compiler.is_compiling():
            return self.among_experts(inner, x)
        if not inner.base.additive:
            return super().forward(inner, x)
        if self.reads_as_is(inner.base, x):
            out = self.fused(inner, x)
            return out if self.lora_bias is None else out + (self.scaling * self.lora_bias).to(out.dtype)
        return inner(x) + self.update(inner.base, x)

    def cut_dims(self) -> Mapping[str, tuple[int | None, int | None]] | None:
        own = type(self)
        plain = own.update is Lora.update and own.forward is Lora.forward and own.factors is Lora.factors
        return LORA_CUT if plain else None

    @property
    def fuses(self) -> bool:
        return type(self).update is Lora.update and type(self).forward is Lora.forward

    def update(self, base: BaseWeight, x: Any) -> Tensor:
        """What is added to the layer's output."""
        A, B = self.factors()
        out = self.times * self.scaling * base.low_rank(self.dropped(x), A, B)
        if self.lora_bias is not None:
            shape = (-1, *(1 for _ in range(A.dim() - 2)))
            out = out + self.scaling * self.lora_bias.view(shape)
        return out
