"""GPTQ (Frantar et al. 2022, arXiv 2210.17323) and AWQ (Lin et al. 2023, arXiv 2306.00978): codes in 32-bit words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .quantised import QuantisedWeight


class PackedIntsWeight(QuantisedWeight):
    """Codes of a few bits in 32-bit words, with a scale and a zero point for each group of inputs."""

    weight_name = "qweight"

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.module.scales.dtype  # type: ignore[assignment]
        return dtype

    @staticmethod
    def _fields(words: Tensor, bits: int) -> Tensor:
        """(..., n) words to (..., n, 32 / bits) codes, the lowest bits first."""
        shifts = torch.arange(0, 32, bits, device=words.device, dtype=torch.int32)
        codes: Tensor = (words.unsqueeze(-1) >> shifts) & (2**bits - 1)
        return codes


class GptqWeight(PackedIntsWeight):
    """Words run along the inputs, `g_idx` names each input's group; files of the first version hold zero points - 1."""

    storage = "gptq"

    @property
    def shape(self) -> tuple[int, ...]:
        layer: Any = self.module  # packages differ in what they call the sizes
        return layer.qweight.shape[1], layer.g_idx.shape[0]

    def dequantised(self) -> Tensor:
        layer: Any = self.module
        own = getattr(layer, "dequantize_weight", None)
        if callable(own):  # the layer knows its bits and version itself
            return own().T.to(self.dtype).contiguous()  # type: ignore[no-any-return]
        bits = 32 * layer.qweight.shape[0] // self.in_features
        codes_IO = self._fields(layer.qweight.T, bits).flatten(1).T
        zeros_GO = self._fields(layer.qzeros, bits).flatten(1) + 1
        groups = layer.g_idx.long()
        weight_IO = layer.scales[groups] * (codes_IO - zeros_GO[groups])
        return weight_IO.T.contiguous()  # type: ignore[no-any-return]


class AwqWeight(PackedIntsWeight):
    """Words run along the outputs, whose order inside a word is 0 2 4 6 1 3 5 7."""

    storage = "awq"

    def dequantised(self) -> Tensor:
        layer: Any = self.module
        order = [0, 4, 1, 5, 2, 6, 3, 7]
        codes_IO = self._fields(layer.qweight, 4)[..., order].flatten(1)
        zeros_GO = self._fields(layer.qzeros, 4)[..., order].flatten(1)
        size = self.in_features // zeros_GO.shape[0]
        weight_IO = (codes_IO - zeros_GO.repeat_interleave(size, 0)) * layer.scales.repeat_interleave(size, 0)
        return weight_IO.T.contiguous()  # type: ignore[no-any-return]
