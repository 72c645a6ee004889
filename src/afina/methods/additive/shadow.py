"""ShadowPEFT: a small network beside the model, whose state follows the layers and is fed into each of them.

    h' = h + α W_up W_down dropout(h - s),   out = block(h'),   s ← (1 - g) s + g T(out),   g = σ(G(out)),  s_0 = P S(x)

Li et al. 2026, arXiv 2604.19254. S is a decoder of the model's own kind with fewer layers (`shadow_network.py`), fed
with the model's embeddings if it is as wide; T and G are two-layer networks. In training the loss gets
`auxiliary_loss_weight` times that of the model's head on s_0 (with a classifier a head of its own); in evaluation it
does not, other than in the reference. S from a pretrained checkpoint is not available. Trainable: per layer
2 r d + 2 (2 u d + u + d), and S. Not mergeable. Layers: the blocks of decoders (and encoders) of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Activation, Site
from ...core.hosts.view import View
from ...core.layers.weights import BaseWeight
from ...errors import ConfigError
from ..selective.last_layers import block_stack
from .shadow_network import ShadowNetwork


@dataclass(kw_only=True)
class ShadowConfig(LayerConfig):
    """Configuration of ShadowPEFT; fields as in the reference.

    Attributes:
        r: rank of what is fed into a block.
        shadow_alpha: α.
        shadow_dropout: dropout on h - s.
        shadow_model: "mirror" is all there is: S is built like the model.
        shadow_num_hidden_layers: layers of S; 1 if None.
        shadow_hidden_size: width of S; the model's if None.
        shadow_num_attention_heads: attention heads of S; the model's if None.
        shadow_intermediate_size: feed-forward width of S; the model's if None.
        share_embeddings: feed S with the model's embeddings, where it is as wide.
        update_hidden_size: u, hidden width of T and G; r if None.
        auxiliary_loss_weight: weight of S's own loss in training.
        target_modules: whole blocks; all of the model's stack by default.
    """

    r: int = bounded(8, ge=1, le=2**20)
    shadow_alpha: float = 0.1
    shadow_dropout: float = bounded(0.2, ge=0, lt=1)
    init_weights: bool = True
    shadow_model: str = "mirror"
    shadow_num_hidden_layers: int | None = bounded(None, ge=1, le=200)
    shadow_hidden_size: int | None = bounded(None, ge=1)
    shadow_num_attention_heads: int | None = bounded(None, ge=1)
    shadow_intermediate_size: int | None = bounded(None, ge=1)
    share_embeddings: bool = True
    update_hidden_size: int | None = bounded(None, ge=1)
    auxiliary_loss_weight: float = bounded(0.05, ge=0)

    default_learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shadow_model != "mirror":
            raise ConfigError("a shadow network from a checkpoint is not available", where="shadow_model",
                              got=self.shadow_model, expected="mirror")  # fmt: skip

    def own_targets(self, model: Any) -> list[str]:
        name, size = block_stack(model)
        return [f"{name}.{i}" for i in range(size)]


def _named(module: nn.Module) -> nn.ModuleDict:
    """A module under the name that files have for it, whatever the adapter is called."""
    return nn.ModuleDict({"default": module})


@register("SHADOW", ShadowConfig)
class Shadow(Activation):
    """`shadow_down`: (r, d), `shadow_up`: (d, r), `shadow_update_transform` (T), `shadow_update_gate` (G): d, u, d."""

    prefix = "shadow_"
    kinds = frozenset({"module"})
    shares_batch = False  # its state follows all layers
    has_penalty = True

    def __init__(self, site: Site, config: ShadowConfig) -> None:
        super().__init__(site, config)
        assert isinstance(site.shared, ShadowNetwork)
        self.share(site.shared)
        self.place, self.is_first = site.name, site.shared.first == site.name
        self.alpha = config.shadow_alpha
        width, hidden = site.shared.width, config.update_hidden_size or config.r
        make: dict[str, Any] = {"device": site.device, "dtype": site.dtype}
        self.shadow_down = _named(nn.Linear(width, config.r, bias=False, **make))
        up = nn.Linear(config.r, width, bias=False, **make)
        if config.init_weights:
            nn.init.zeros_(up.weight)
        self.shadow_up = _named(up)
        self.shadow_update_transform, self.shadow_update_gate = (
            _named(nn.Sequential(nn.Linear(width, hidden, **make), nn.GELU(), nn.Linear(hidden, width, **make)))
            for _ in range(2)
        )
        self.drop = nn.Dropout(config.shadow_dropout)

    def forward(self, inner: View, x: Any) -> Any:
        network: Any = self.shared
        state = network.before(self.place, (*inner.args, *inner.kwargs.values()))
        gap = self.shadow_down["default"](self.drop((x - state).to(self.dtype)))
        out = inner(x + (self.alpha * self.shadow_up["default"](gap)).to(x.dtype))
        hidden: Tensor = (out[0] if isinstance(out, tuple) else out).to(self.dtype)
        gate = torch.sigmoid(self.shadow_update_gate["default"](hidden))
        update = (1 - gate) * state.to(self.dtype) + gate * self.shadow_update_transform["default"](hidden)
        network.notes["state"] = update.to(state.dtype)
        return out

    def penalty(self) -> Tensor | None:
        network: Any = self.shared
        return network.own_loss() if self.is_first else None

    @classmethod
    def build_shared(cls, config: ShadowConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> nn.Module:
        return ShadowNetwork(config, {name: base.module for name, base in layers.items()}, dtype)
