"""OFT: the weight times a block-diagonal rotation of its inputs.

    W' = W · blockdiag(R_1, ..., R_n),   R = (I + Q)(I - Q)⁻¹,  Q skew-symmetric   (Cayley)

Qiu et al. 2023, arXiv 2306.07280; with the inverse as a Neumann series (the default) Qiu et al. 2025, arXiv 2506.19847.
Constrained OFT (`coft`) keeps each ||Q|| within eps / √blocks; `block_share` uses one block for all. On convolutions
with a kernel the reference's forward is not its merge; here both are the formula, over in · kernel inputs. Embeddings
are rotated in their channels. Trainable: blocks · b (b - 1) / 2. Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d,
Embedding, attention, 2-D parameters.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Site, WeightTransform
from ...errors import AfinaWarning, ConfigError


@dataclass(kw_only=True)
class OFTConfig(LayerConfig):
    """Configuration of OFT; fields as in the reference. Exactly one of the first two is 0.

    Attributes:
        r: blocks of a layer.
        oft_block_size: b, inputs of a block.
        module_dropout: probability that a block's rotation is left out in a training step.
        coft: keep the rotations near the identity (constrained OFT).
        eps: of `coft`: how near.
        block_share: one block for all.
        use_cayley_neumann: replace the inverse by a Neumann series.
        num_cayley_neumann_terms: terms of that series.
    """

    r: int = bounded(0, ge=0)
    oft_block_size: int = bounded(32, ge=0)
    module_dropout: float = bounded(0.0, ge=0, lt=1)
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_weights: bool = True
    coft: bool = False
    eps: float = bounded(6e-5, gt=0)
    block_share: bool = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: int = bounded(5, ge=1, le=100)

    needs: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "eps": ("coft", True),
        "num_cayley_neumann_terms": ("use_cayley_neumann", True),
    }
    default_learning_rate: ClassVar[float] = 1e-3
    rate_exponent: ClassVar[float] = 0.65

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.r == 0) == (self.oft_block_size == 0):
            raise ConfigError("exactly one of r and oft_block_size must be 0", where="r, oft_block_size",
                              got=f"{self.r}, {self.oft_block_size}")  # fmt: skip


def skew(entries: Tensor, size: int) -> Tensor:
    """Skew-symmetric (blocks, size, size) from the entries above the diagonal, row by row: (blocks, size(size-1)/2)."""
    rows, columns = torch.triu_indices(size, size, 1, device=entries.device)
    upper = entries.new_zeros(entries.shape[0], size * size).index_copy(1, rows * size + columns, entries)
    upper = upper.view(-1, size, size)
    return upper - upper.mT


def cayley(q_NBB: Tensor, terms: int | None) -> Tensor:
    """(I + Q)(I - Q)⁻¹, or with `terms` (I - Q) times the Neumann series of (I + Q)⁻¹.

    The files of the reference mean Q with opposite signs in the two forms; by t terms they mean I (t = 1), I - 2 Q
    (t = 2), or a series of max(3, t - 1) terms.
    """
    eye = torch.eye(q_NBB.shape[-1], dtype=q_NBB.dtype, device=q_NBB.device)
    if terms is None:
        # The solver has no 16-bit form.
        wide = torch.promote_types(q_NBB.dtype, torch.float32)
        out: Tensor = torch.linalg.solve((eye - q_NBB).to(wide), (eye + q_NBB).to(wide), left=False)
        return out.to(q_NBB.dtype)
    if terms <= 2:
        return eye - 2 * (terms - 1) * q_NBB
    series = power = eye.expand_as(q_NBB)
    for _ in range(max(3, terms - 1) - 1):
        power = -power @ q_NBB
        series = series + power
    return series - q_NBB @ series


def as_rows(weight: Tensor, embedding: bool) -> Tensor:
    """The 2-D matrix whose columns are mixed: inputs of a layer, but the channels of an embedding."""
    return weight.T if embedding else weight.flatten(1)


def from_rows(rows: Tensor, like: Tensor, embedding: bool) -> Tensor:
    """The inverse of `as_rows`."""
    return rows.T if embedding else rows.view(like.shape)


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` that is nearest to `wanted`; the smaller of two."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - wanted))


@register("OFT", OFTConfig)
class OFT(WeightTransform):
    """`oft_R`: (blocks, b (b - 1) / 2), the entries of Q above the diagonal."""

    steady: ClassVar[bool] = True
    prefix = "oft_"
    kinds = frozenset({"linear", "conv", "embedding", "attention", "parameter"})

    @classmethod
    def idle(cls, config: OFTConfig, adapters: Sequence[OFT]) -> Iterable[str]:
        alone = config.block_share and all(a.repeat == 1 for a in adapters)
        return ["block_share (every layer has one block)"] if alone else []

    def __init__(self, site: Site, config: OFTConfig) -> None:
        super().__init__(site, config)
        self.embedding = site.base.kind == "embedding"
        width = site.base.out_features if self.embedding else math.prod(site.base.shape[1:])
        wanted = config.oft_block_size or config.r
        divisor = nearest_divisor(width, wanted)
        if divisor != wanted:
            warnings.warn(f"{site.name}: {wanted} does not divide the layer's {width} inputs; {divisor} is used",
                          AfinaWarning, stacklevel=4)  # fmt: skip
        self.block = divisor if config.oft_block_size else width // divisor
        blocks = 1 if config.block_share else width // self.block
        self.repeat = width // self.block // blocks
        shape = (blocks, self.block * (self.block - 1) // 2)
        self.oft_R = site.zeros(*shape) if config.init_weights else site.normal(0.1, *shape)
        self.eps = config.eps / math.sqrt(blocks) if config.coft else None
        self.terms = config.num_cayley_neumann_terms if config.use_cayley_neumann else None
        self.drop = config.module_dropout

    def rotation(self) -> Tensor:
        """(blocks, b, b)."""
        q_NBB = skew(self.oft_R, self.block)
        if self.eps is not None:
            norm = q_NBB.norm(dim=(1, 2), keepdim=True)
            q_NBB = q_NBB * (self.eps / norm.clamp_min(1e-30)).clamp_max(1.0)
        out = cayley(q_NBB, self.terms).repeat(self.repeat, 1, 1)
        if self.training and self.drop:
            keep = (torch.rand(len(out), 1, 1, device=out.device) >= self.drop).to(out.dtype)
            out = keep * out + (1 - keep) * torch.eye(self.block, dtype=out.dtype, device=out.device)
        return out

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        rows = as_rows(weight, self.embedding)
        blocks = self.rotation()
        # The files of the reference rotate an embedding's channels the other way round.
        blocks = blocks.mT if self.embedding else blocks
        turned = torch.einsum("onb,nbc->onc", rows.reshape(len(rows), -1, self.block), blocks)
        return from_rows(turned.flatten(1), weight, self.embedding), bias

    @property
    def disk_names(self) -> Mapping[str, str]:  # type: ignore[override]
        """Embeddings have a name of their own."""
        return {"oft_R": "oft_embedding_R.weight" if self.embedding else "oft_R.weight"}
