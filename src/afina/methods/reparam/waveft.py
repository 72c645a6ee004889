"""WaveFT: the weight update as one step of an inverse wavelet transform of a few trained coefficients at random places.

    ΔW = s · IDWT2(C),   C[i, j] = c_k at n random places, else 0;   without `use_idwt`  ΔW = s · C

Bilican et al. 2025, arXiv 2505.12532. The places are the first n of a random permutation of the weight's elements,
seeded by `random_loc_seed`; no file holds them. C has a margin for the filter's length. Filters: db1 to db10, sym2 to
sym10, coif1 to coif5 (the reference's coif4 and coif5 are not orthogonal, so files with those two mean something else
there). `proportional_parameters` gives larger layers more coefficients. Trainable: n a layer. Mergeable. Layers:
Linear, Conv1D, Conv1d/2d/3d, Embedding, MultiheadAttention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Site
from ...core.inject.patterns import value_for
from ...core.layers.weights import BaseWeight
from ...errors import ConfigError
from .fourierft import SparseDelta
from .wavelets import FAMILIES, low_pass


@dataclass(kw_only=True)
class WaveFTConfig(LayerConfig):
    """Configuration of WaveFT; fields as in the reference.

    Attributes:
        n_frequency: n, trained coefficients of a layer.
        scaling: s.
        wavelet_family: the filters' name.
        use_idwt: transform the coefficients; False takes them as the update itself.
        random_loc_seed: of the places.
        n_frequency_pattern: names or patterns of modules -> their own n.
        proportional_parameters: give layers coefficients in proportion to their size, `n_frequency` on average.
    """

    n_frequency: int = bounded(2592, ge=1)
    scaling: float = bounded(25.0, gt=0)
    wavelet_family: str = "db1"
    use_idwt: bool = True
    random_loc_seed: int = bounded(777, ge=0)
    fan_in_fan_out: bool = False
    bias: str = "none"
    n_frequency_pattern: dict[str, int] | None = field(default_factory=dict, metadata={"bounds": {"ge": 1}})
    proportional_parameters: bool = False
    init_weights: bool = True

    default_learning_rate: ClassVar[float] = 1e-2
    default_targets: ClassVar[Mapping[str, list[str] | str]] = MappingProxyType(
        {model: ["mlp.c_proj"] for model in ("gpt2", "gpt_bigcode")}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.wavelet_family not in FAMILIES:
            raise ConfigError("this wavelet is not available", where="wavelet_family", got=self.wavelet_family,
                              expected=", ".join(FAMILIES))  # fmt: skip


def synthesise(bands: Tensor, filters: Tensor, size: int) -> Tensor:
    """(..., 2, half): low and high band -> (..., size), by the filter pair (2, length)."""
    length = filters.shape[1]
    flat = bands.reshape(-1, 2, bands.shape[-1])
    out = F.conv_transpose1d(flat, filters[:, None].to(flat), stride=2, padding=length - 2)
    return out[..., :size].reshape(*bands.shape[:-2], size)


class Sizes(nn.Module):
    """The adapted layers' mean number of weights, by which coefficients are shared out."""

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.mean = mean


@register("WAVEFT", WaveFTConfig)
class WaveFT(SparseDelta):
    """`waveft_spectrum`: (n,)."""

    steady: ClassVar[bool] = True
    prefix = "waveft_"

    def __init__(self, site: Site, config: WaveFTConfig) -> None:
        super().__init__(site, config)
        out, width = self.matrix = site.base.out_features, math.prod(site.base.shape[1:])
        count = int(value_for(site.name, config.n_frequency_pattern, config.n_frequency, "n_frequency_pattern"))
        if isinstance(site.shared, Sizes):
            count = round(config.n_frequency * out * width / site.shared.mean)
        self.choose(site, count, out, width, config.random_loc_seed)
        self.waveft_spectrum = site.zeros(count) if config.init_weights else site.normal(0.01, count)
        self.scaling = self.initial_scaling = config.scaling
        self.transforms = config.use_idwt
        if config.use_idwt:
            self._make_room(low_pass(config.wavelet_family).float(), site)

    def _make_room(self, low: Tensor, site: Site) -> None:
        """Move the places into the coefficients' matrix, which is larger by the filter's length."""
        signs = torch.tensor([1.0, -1.0]).repeat(len(low) // 2)
        self.register_buffer("filters", torch.stack([low, signs * low.flip(0)]).to(site.base.device), persistent=False)
        (out, width), places = self.size, self.get_buffer("places")
        rows, columns = (n + n % 2 + len(low) - 2 for n in self.size)
        row, column = places // width + (rows - out) // 2, places % width + (columns - width) // 2
        self.size, self.places = (rows, columns), row * columns + column

    def delta(self, weight: Tensor) -> Tensor:
        spectrum = self.spread(self.waveft_spectrum)
        if self.transforms:
            (rows, columns), filters = self.size, self.get_buffer("filters")
            quarters = spectrum.view(2, rows // 2, 2, columns // 2)
            # The left and right halves are the bands along the rows' axis, the upper and lower ones along the columns'.
            tall = synthesise(quarters.permute(0, 3, 2, 1), filters, self.matrix[0])
            spectrum = synthesise(tall.permute(2, 0, 1), filters, self.matrix[1])
        return self.scaling * spectrum.view(weight.shape)

    @classmethod
    def build_shared(
        cls, config: WaveFTConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype
    ) -> nn.Module | None:
        sizes = [math.prod(base.shape) for base in layers.values()]
        return Sizes(sum(sizes) / len(sizes)) if config.proportional_parameters and sizes else None
