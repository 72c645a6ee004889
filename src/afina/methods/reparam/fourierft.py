"""FourierFT: the weight update as the inverse Fourier transform of a few trained coefficients at random frequencies.

    ΔW = s · Re(IFFT2(F)),   F[i, j] = c_k at n random places (i, j), else 0

Gao et al. 2024, arXiv 2405.03003. The places are the first n of a random permutation seeded by `random_loc_seed`; no
file holds them. Trainable: n a layer. Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d, Embedding, attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import DeltaWeight, Site
from ...core.inject.patterns import value_for
from ...errors import ConfigError


@dataclass(kw_only=True)
class FourierFTConfig(LayerConfig):
    """Configuration of FourierFT; fields as in the reference.

    Attributes:
        n_frequency: n, trained coefficients of a layer.
        scaling: s.
        random_loc_seed: of the places; no file could be read again without.
        n_frequency_pattern: names or patterns of modules -> their own n.
        init_weights: start without changing the outputs; False, the reference's choice, draws the coefficients from
            N(0, 1).
    """

    n_frequency: int = bounded(1000, ge=1)
    scaling: float = bounded(150.0, gt=0)
    random_loc_seed: int | None = 777
    fan_in_fan_out: bool = False
    bias: str = "none"
    n_frequency_pattern: dict[str, int] | None = field(default_factory=dict, metadata={"bounds": {"ge": 1}})
    init_weights: bool = False

    default_learning_rate: ClassVar[float] = 3e-2
    default_targets: ClassVar[Mapping[str, list[str] | str]] = MappingProxyType(
        {model: ["mlp.c_proj"] for model in ("gpt2", "gpt_bigcode")}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random_loc_seed is None:
            raise ConfigError("without a seed no file could be read again", where="random_loc_seed", got=None)


class SparseDelta(DeltaWeight):
    """ΔW made from n trained numbers at random places of a matrix (rows, columns)."""

    kinds = frozenset({"linear", "conv", "embedding", "attention", "parameter"})

    def choose(self, site: Site, count: int, rows: int, columns: int, seed: int) -> None:
        """Fix the places: the first `count` of a seeded permutation of all."""
        if count > rows * columns:
            raise ConfigError("more coefficients than the weight has elements", where=f"n_frequency at {site.name}",
                              got=count, expected=f"<= {rows * columns}")  # fmt: skip
        self.size = rows, columns
        places = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(seed))[:count]
        self.register_buffer("places", places.to(site.base.device), persistent=False)

    def spread(self, values: Tensor) -> Tensor:
        """(rows, columns), zero but for the values at their places."""
        flat = values.new_zeros(self.size[0] * self.size[1])
        return flat.index_copy(0, self.get_buffer("places"), values).view(self.size)


@register("FOURIERFT", FourierFTConfig)
class FourierFT(SparseDelta):
    """`fourierft_spectrum`: (n,)."""

    steady: ClassVar[bool] = True
    prefix = "fourierft_"
    reference_attributes = frozenset({"scaling"})

    def __init__(self, site: Site, config: FourierFTConfig) -> None:
        super().__init__(site, config)
        count = int(value_for(site.name, config.n_frequency_pattern, config.n_frequency, "n_frequency_pattern"))
        assert config.random_loc_seed is not None
        out, width = site.base.out_features, math.prod(site.base.shape[1:])
        self.choose(site, count, out, width, config.random_loc_seed)
        self.fourierft_spectrum = site.zeros(count) if config.init_weights else site.normal(1.0, count)
        self.scaling = self.initial_scaling = config.scaling

    def delta(self, weight: Tensor) -> Tensor:
        spectrum = self.spread(self.fourierft_spectrum)
        # torch has no Fourier transform of 16-bit numbers.
        wide = spectrum.to(torch.promote_types(spectrum.dtype, torch.float32))
        real: Tensor = torch.fft.ifft2(wide).real
        return self.scaling * real.to(spectrum).view(weight.shape)
