"""Toy models, one for each kind of layer that a method can adapt.

Every model ends in an unadapted `head`, so that gradients have to travel and a trained head can be asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class Layer:
    """What a parameter count depends on; `width` counts all input channels, also of a grouped convolution."""

    out: int
    width: int
    kernel: int = 1
    groups: int = 1
    experts: int = 1
    bias: int = 0


@dataclass(frozen=True)
class Kind:
    """A toy model and what a config must target in it."""

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    layers: tuple[Layer, ...]
    targets: Mapping[str, Any] = field(default_factory=lambda: {"target_modules": ["first", "second"]})
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What a row's method takes in forward besides the model's own inputs."""
    oracle_must_merge: str = ""
    """Why the reference's own unmerged forward is wrong here, so that its merged model is the oracle."""

    def build(self, seed: int = 0) -> nn.Module:
        """The model with weights that depend on the seed alone."""
        torch.manual_seed(seed)
        return self.model().eval()

    def frozen(self) -> nn.Module:
        """The model as adapters see it: torch folds a matrix product differently where a weight requires gradients."""
        return self.build().requires_grad_(False)

    def __str__(self) -> str:
        return self.name


class Chain(nn.Module):
    """`head(tanh(second(tanh(first(x)))))`, the last axis being the features."""

    def __init__(self, first: nn.Module, second: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.head = first, second, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Pooled(Chain):
    """As `Chain`, for convolutions: the mean over all positions goes to the head."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))).flatten(2).mean(-1))


class Lookup(nn.Module):
    """An embedding and a head."""

    def __init__(self, embedding: nn.Module, dim: int) -> None:
        super().__init__()
        self.first, self.head = embedding, nn.Linear(dim, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.first(tokens))


class ScaledEmbedding(nn.Embedding):
    """An embedding that multiplies what it looks up, as some language models do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("embed_scale", torch.tensor(math.sqrt(self.embedding_dim)), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * self.embed_scale.to(self.weight.dtype)


class Attending(nn.Module):
    """Self-attention that may be given a mask."""

    def __init__(self, batch_first: bool, bias: bool = True) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first, bias=bias)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        out, _ = self.attention(x, x, x, key_padding_mask=padding, need_weights=False)
        return self.head(out)


class Encoding(nn.Module):
    """torch's encoder layer, which in eval mode reads its weights past their modules."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.head(self.layer(x, src_key_padding_mask=padding))


class Matrix(nn.Module):
    """A module that multiplies by a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(12, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T


class Experts(nn.Module):
    """Stacked experts, all of which see every input; `is_transposed` says in which layout they are stored."""

    def __init__(self, is_transposed: bool) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        up, down = torch.randn(3, 12, 8) / 3, torch.randn(3, 8, 12) / 3
        self.up = nn.Parameter(up.mT.contiguous() if is_transposed else up)
        self.down = nn.Parameter(down.mT.contiguous() if is_transposed else down)

    def forward(self, x: Tensor) -> Tensor:
        up, down = (self.up, self.down) if self.is_transposed else (self.up.mT, self.down.mT)
        return (torch.tanh(x.unsqueeze(-3) @ up) @ down).sum(-3)


class Holding(nn.Module):
    """A module with parameters that are read, and a head."""

    def __init__(self, mixture: nn.Module, width: int) -> None:
        super().__init__()
        self.mixture, self.head = mixture, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mixture(x))


class Block(nn.Module):
    """A module that is no linear operator, and returns a tuple that starts with its output."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x + self.linear(self.norm(x)), None


class Blocks(nn.Module):
    """Two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = Block(), Block(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)[0])[0])


def _conv1d_of_transformers() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    model = Chain(Conv1D(12, 8), Conv1D(10, 12), nn.Linear(10, 5))
    for layer in (model.first, model.second):
        nn.init.normal_(layer.weight, std=0.3)
        nn.init.normal_(layer.bias, std=0.3)
    return model


def _random(*shape: int) -> Callable[[], Inputs]:
    return lambda: (torch.randn(shape, generator=torch.Generator().manual_seed(7)),)


def _tokens() -> Inputs:
    # Includes the padding token 0.
    return (torch.tensor([[1, 5, 9, 0], [2, 2, 11, 0]]),)


def _masked() -> Inputs:
    return (*_random(3, 6, 16)(), torch.tensor([[False] * 6, [False] * 4 + [True] * 2, [False] * 5 + [True]]))


def _attention_layers() -> tuple[Layer, ...]:
    return Layer(48, 16, bias=48), Layer(16, 16, bias=16)


_LINEARS = (Layer(12, 8, bias=12), Layer(10, 12, bias=10))
_BARE = (Layer(12, 8), Layer(10, 12))
_EXPERTS = (Layer(12, 8, experts=3), Layer(8, 12, experts=3))

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("linear", lambda: Chain(nn.Linear(8, 12), nn.Linear(12, 10), nn.Linear(10, 5)), _random(3, 4, 8),
             _LINEARS),
        Kind(
            "linear_without_bias",
            lambda: Chain(nn.Linear(8, 12, bias=False), nn.Linear(12, 10, bias=False), nn.Linear(10, 5, bias=False)),
            _random(3, 4, 8), _BARE,
        ),
        Kind("transposed_linear", _conv1d_of_transformers, _random(3, 4, 8), _LINEARS),
        Kind(
            "conv1d",
            lambda: Pooled(nn.Conv1d(4, 12, 3, stride=2, padding=1), nn.Conv1d(12, 10, 2, bias=False),
                           nn.Linear(10, 5)),
            _random(3, 4, 12), (Layer(12, 4, 3, bias=12), Layer(10, 12, 2)),
        ),
        Kind(
            "dilated_conv1d",
            lambda: Pooled(nn.Conv1d(4, 12, 3, dilation=2), nn.Conv1d(12, 10, 2, padding="same"), nn.Linear(10, 5)),
            _random(3, 4, 12), (Layer(12, 4, 3, bias=12), Layer(10, 12, 2, bias=10)),
            oracle_must_merge="it leaves out the dilation",
        ),
        Kind(
            "conv2d",
            lambda: Pooled(nn.Conv2d(4, 12, (3, 2), stride=(2, 1), padding=(1, 0)), nn.Conv2d(12, 10, 2),
                           nn.Linear(10, 5)),
            _random(3, 4, 8, 7), (Layer(12, 4, 6, bias=12), Layer(10, 12, 4, bias=10)),
        ),
        Kind(
            "padded_conv2d",
            lambda: Pooled(nn.Conv2d(4, 12, (3, 2), padding=(1, 0), padding_mode="circular"),
                           nn.Conv2d(12, 10, 2, padding="same", padding_mode="reflect"), nn.Linear(10, 5)),
            _random(3, 4, 8, 7), (Layer(12, 4, 6, bias=12), Layer(10, 12, 4, bias=10)),
            oracle_must_merge="it pads with zeros, whatever the padding mode",
        ),
        Kind(
            "conv3d",
            lambda: Pooled(nn.Conv3d(4, 12, 2), nn.Conv3d(12, 10, 2, padding=1), nn.Linear(10, 5)),
            _random(2, 4, 4, 5, 4), (Layer(12, 4, 8, bias=12), Layer(10, 12, 8, bias=10)),
        ),
        Kind(
            "grouped_conv2d",
            lambda: Pooled(nn.Conv2d(8, 12, 3, groups=4, padding=1), nn.Conv2d(12, 8, 2, groups=2), nn.Linear(8, 5)),
            _random(3, 8, 6, 6), (Layer(12, 8, 9, groups=4, bias=12), Layer(8, 12, 4, groups=2, bias=8)),
        ),
        Kind("embedding", lambda: Lookup(nn.Embedding(13, 8, padding_idx=0), 8), _tokens, (Layer(8, 13),),
             {"target_modules": ["first"]}),
        Kind("scaled_embedding", lambda: Lookup(ScaledEmbedding(13, 8, padding_idx=0), 8), _tokens, (Layer(8, 13),),
             {"target_modules": ["first"]}),
        Kind("attention", lambda: Attending(False), _random(6, 3, 16), _attention_layers(),
             {"target_modules": ["attention"]}),
        Kind("attention_batch_first", lambda: Attending(True), _masked, _attention_layers(),
             {"target_modules": ["attention"]}),
        Kind("attention_without_bias", lambda: Attending(True, False), _masked, (Layer(48, 16), Layer(16, 16)),
             {"target_modules": ["attention"]}),
        Kind("encoder_layer", Encoding, _random(3, 6, 16),
             (*_attention_layers(), Layer(32, 16, bias=32), Layer(16, 32, bias=16)),
             {"target_modules": ["self_attn", "linear1", "linear2"]},
             oracle_must_merge="torch's fused encoder layer reads the weights past its adapters"),
        Kind("parameter", lambda: Holding(Matrix(), 12), _random(3, 8), (Layer(12, 8),),
             {"target_modules": [], "target_parameters": ["mixture.matrix"]}),
        Kind("experts", lambda: Holding(Experts(False), 8), _random(3, 2, 8), _EXPERTS,
             {"target_modules": [], "target_parameters": ["mixture.up", "mixture.down"]}),
        Kind("transposed_experts", lambda: Holding(Experts(True), 8), _random(3, 2, 8), _EXPERTS,
             {"target_modules": [], "target_parameters": ["mixture.up", "mixture.down"]}),
        Kind("module", Blocks, _random(3, 4, 8), (Layer(8, 8), Layer(8, 8))),
    )
}  # fmt: skip
