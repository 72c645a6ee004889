"""Trainable tokens: train the embeddings of chosen tokens, and nothing else.

    E'[i] = rows[i] for the chosen i, E elsewhere

As in the reference (no paper); `trainable_tokens_delta` holds the new rows, not differences. What shares the input
embedding's weight goes along: an output head, an encoder's and a decoder's embeddings. Trainable: tokens · dim.
Mergeable. Layers: Embedding, and Linear as an output head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.config import LayerConfig, extension, register
from ...core.hosts.adapter import Adapter, Site
from ...core.hosts.tied import Tied
from ...core.hosts.view import View
from ...core.layers.weights import EmbeddingWeight
from ...errors import ConfigError, TargetError


@dataclass(kw_only=True)
class TrainableTokensConfig(LayerConfig):
    """Configuration of trainable tokens; fields as in the reference. Without targets: the input embedding.

    Attributes:
        token_indices: distinct ids of the tokens; must be given.
        init_weights: start at the tokens' own embeddings; False adds noise from N(0, 1).
    """

    token_indices: list[int] = field(default_factory=list, metadata={"bounds": {"ge": 0}})
    init_weights: bool = True
    modules_to_save: list[str] | None = extension()

    default_learning_rate: ClassVar[float] = 1e-3
    disk_folder: str = field(default="", metadata={"runtime": True})

    def own_targets(self, model: Any) -> list[str]:
        try:
            embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
        except NotImplementedError as error:  # transformers' word for models that embed nothing
            raise TargetError("the model embeds no tokens", where="target_modules", got=type(model).__name__) from error
        names = [
            n for n, m in model.named_modules() if m is embedding or (embedding is None and type(m) is nn.Embedding)
        ]
        if not names:
            raise TargetError("the model embeds no tokens", where="target_modules", got=type(model).__name__)
        return [names[0].removesuffix(".base_layer")]


@register("TRAINABLE_TOKENS", TrainableTokensConfig)
class TrainableTokens(Adapter):
    """`trainable_tokens_delta`: (tokens, dim), the rows themselves."""

    steady: ClassVar[bool] = True
    prefix = "trainable_tokens_"
    in_token_adapter = True
    kinds = frozenset({"embedding", "linear"})

    def __init__(self, site: Site, config: TrainableTokensConfig) -> None:
        super().__init__(site, config)
        self.is_embedding, self.folder = site.base.kind == "embedding", config.disk_folder
        size = site.base.in_features if self.is_embedding else site.base.out_features
        wrong = [i for i in config.token_indices if i >= size]
        if wrong or not config.token_indices or len(set(config.token_indices)) != len(config.token_indices):
            raise ConfigError("needs distinct token ids within the vocabulary", where=f"token_indices at {site.name}",
                              got=wrong or config.token_indices, expected=f"0..{size - 1}",
                              fix="resize the model's embeddings first" if wrong else None)  # fmt: skip
        ids = torch.tensor(config.token_indices)
        self.register_buffer("ids", ids.to(site.base.device), persistent=False)
        place = torch.full((size,), -1)
        place[ids] = torch.arange(len(ids))
        self.register_buffer("place", place.to(site.base.device), persistent=False)
        weight = site.base.read()[0].detach()
        rows = (weight.T if self.is_embedding else weight)[ids.to(weight.device)].to(site.dtype)
        start = rows if config.init_weights else rows + torch.randn_like(rows)
        self.trainable_tokens_delta = nn.Parameter(start.clone().to(site.device))

    def forward(self, inner: View, x: Any) -> Any:
        if not self.is_embedding:
            return with_logits(inner, x, self.trainable_tokens_delta, self.get_buffer("ids"))
        out: Tensor = inner(x)
        base = inner.base
        assert isinstance(base, EmbeddingWeight)
        if not base.is_plain:
            return super().forward(inner, x)
        place = self.get_buffer("place")[x]
        rows = base.scaled(F.embedding(place.clamp_min(0), self.trainable_tokens_delta))
        return torch.where((place >= 0).unsqueeze(-1), rows.to(out.dtype), out)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        rows, ids = self.trainable_tokens_delta, self.get_buffer("ids")
        if self.is_embedding:
            return weight.index_copy(1, ids, rows.T), bias
        return weight.index_copy(0, ids, rows), bias

    def hides(self, earlier: Adapter) -> bool:
        same = isinstance(earlier, TrainableTokens) and torch.isin(self.get_buffer("ids"), earlier.get_buffer("ids"))
        return bool(torch.as_tensor(same).any())

    def disk_state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"{self.folder}{n}": t for n, t in own.items()}

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.assign({n.removeprefix(self.folder): t for n, t in tensors.items()})

    def tied(self, site: Site) -> Adapter:
        return (SameTokens if site.base.kind == "embedding" else TiedTokens)(site, self)


def with_logits(inner: View, x: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """An output head's logits (..., vocabulary), those of the tokens `ids` by `rows` (tokens, dim) and its own bias."""
    bias: Tensor | None = inner.base.bias
    if bias is not None and not inner.is_base:
        bias = inner.params()[1]
    logits: Tensor = inner.apply(x, rows, None if bias is None else bias[ids].to(rows.dtype))
    out: Tensor = inner(x)
    return out.to(logits.dtype).index_copy(-1, ids, logits)


class TiedTokens(Tied):
    """The same rows on the output head; stored a second time where the method stands alone, as the reference does."""

    def forward(self, inner: View, x: Any) -> Any:
        rows: Any = self.sources[0].trainable_tokens_delta
        return with_logits(inner, x, rows, self.sources[0].get_buffer("ids"))

    def disk_state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        source = self.sources[0]
        return {} if source.folder else {"trainable_tokens_delta": source.trainable_tokens_delta}  # type: ignore[dict-item]

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The embedding's adapter has them."""


class SameTokens(TiedTokens):
    """The same rows on another embedding with the same weight, as encoders and decoders have them."""

    kinds = frozenset({"embedding"})

    def forward(self, inner: View, x: Any) -> Any:
        return self.sources[0](inner, x)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.sources[0].merged(weight, bias)
