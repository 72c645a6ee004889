"""Prefix tuning: trained keys and values before those of every attention layer.

    K_l = [P_l^K; K_l(x)],  V_l = [P_l^V; V_l(x)];   with projection: P = MLP(E)

Li and Liang 2021, arXiv 2101.00190; without the projection and used for understanding tasks it is P-tuning v2 (Liu et
al. 2021, arXiv 2110.07602). Trainable: tokens · 2 · layers · kv_dim; with projection tokens · kv_dim + the MLP
(kv_dim + 1) · hidden + (hidden + 1) · 2 · layers · kv_dim. Not mergeable. Models: those whose attention takes a cache;
no gradient checkpointing, which drops it. The file holds the projection too, so that training can go on from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...core.config import bounded, extension, register
from ...core.layers.sharded import shared_like
from ...core.prompts.encoder import PromptEncoder, PromptLearningConfig, PromptSite, embedding_of
from ...errors import ConfigError

PUBLIC = ("PrefixEncoder",)


@dataclass(kw_only=True)
class PrefixTuningConfig(PromptLearningConfig):
    """Configuration of prefix tuning; fields as in the reference.

    Attributes:
        encoder_hidden_size: hidden width of the MLP; `token_dim` if None.
        prefix_projection: compute the prefix by an MLP from narrower embeddings.
        init_weights: "zero" begins with zeros instead of random numbers.
    """

    encoder_hidden_size: int | None = bounded(None, ge=1)
    prefix_projection: bool = False
    init_weights: Literal["zero"] | None = extension()

    needs: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "encoder_hidden_size": ("prefix_projection", True),
        "num_attention_heads": ("token_dim", ...),
    }
    default_learning_rate: ClassVar[float] = 1e-2
    rate_exponent: ClassVar[float] = 0.65


@register("PREFIX_TUNING", PrefixTuningConfig)
class PrefixEncoder(PromptEncoder):
    """`embedding`: (virtual tokens, 2 · layers · kv_dim), or with projection (virtual tokens, kv_dim) and an MLP."""

    goes_into = "cache"

    def __init__(self, site: PromptSite, config: PrefixTuningConfig) -> None:
        super().__init__(site, config)
        width = 2 * site.layers * site.dim
        self.transform: nn.Sequential | None = None
        if not config.prefix_projection:
            self.embedding = embedding_of(site.normal(site.tokens, width, std=0.0 if config.init_weights else 1.0))
            self.disk_names = {"embedding.weight": "prompt_embeddings"}  # type: ignore[misc]
            return
        hidden = config.encoder_hidden_size or site.dim
        self.embedding = embedding_of(site.normal(site.tokens, site.dim))
        self.transform = nn.Sequential(nn.Linear(site.dim, hidden), nn.Tanh(), nn.Linear(hidden, width))
        for parameter in self.transform[-1].parameters() if config.init_weights else ():
            nn.init.zeros_(parameter)
        self.transform.to(device=site.device, dtype=site.dtype)

    def fill(self, table: Tensor) -> None:
        """Take over a whole prefix.

        Args:
            table: (virtual tokens, 2 · layers · kv_dim).

        Raises:
            ConfigError: a projection computes the prefix.
        """
        if self.transform is not None:
            raise ConfigError("a prefix that a projection computes cannot be set", where="prefix_projection", got=True,
                              expected=False)  # fmt: skip
        with torch.no_grad():
            self.embedding.weight.copy_(shared_like(self.embedding.weight, table))

    def encode(self) -> Tensor:
        if self.transform is None:
            return self.embedding.weight
        out: Tensor = self.transform(self.embedding.weight)
        return out
