"""Normal-float quantisation: levels at quantiles of the normal distribution, scaled per block by its largest entry.

Dettmers, Pagnoni, Holtzman, Zettlemoyer 2023, arXiv 2305.14314 (NF4, section 3), for any number of bits k: half of
the 2^k levels lie above zero, one at zero, the rest below; the outermost is the quantile 1 - δ with δ the mean of
1/(2·2^k) and 1/(2·(2^k - 1)), and all are divided by it. For k = 4 these are NF4's 16 levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ConfigError

BLOCK = 64
"""Entries that share one scale, consecutive in the weight's rows."""


def levels(bits: int) -> Tensor:
    """The 2^bits levels in [-1, 1], ascending, float32.

    Raises:
        ConfigError: bits outside 2..8.
    """
    if not 2 <= bits <= 8:
        raise ConfigError("out of range", where="bits", got=bits, expected="2 to 8")
    count = 2**bits
    outermost = 1 - (1 / (2 * count) + 1 / (2 * (count - 1))) / 2
    above = torch.special.ndtri(torch.linspace(outermost, 0.5, count // 2 + 1, dtype=torch.float64))
    below = torch.special.ndtri(torch.linspace(outermost, 0.5, count // 2, dtype=torch.float64))
    table: Tensor = (torch.cat([-below[:-1], above]).sort().values / above[0]).float()
    return table


def quantise(weight: Tensor, bits: int, block: int = BLOCK) -> Tensor:
    """What a normal-float storage of `weight` holds: quantised and dequantised, same shape, float32."""
    table = levels(bits).to(weight.device)
    flat = weight.detach().float().flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    size = blocks.abs().amax(1, keepdim=True)
    codes = torch.bucketize(blocks / size.clamp_min(torch.finfo(torch.float32).tiny), (table[1:] + table[:-1]) / 2)
    return (table[codes] * size).flatten()[: len(flat)].view(weight.shape)
