"""BD-LoRA: LoRA with one block-diagonal factor, so that a sharded model needs no extra communication.

    ΔW = s · B diag(A_1 ... A_n)   or   s · diag(B_1 ... B_n) A,   A_i: (r / n, in / n), B_i: (out / n, r / n)

arXiv 2510.23346 (2025). Trainable: r · (in / n + out) or r · (in + out / n) a layer. Mergeable. Layers: Linear, Conv1D,
MultiheadAttention, 2-D parameters. Modules are named by dotted parts of their path, where the reference takes any
substring ("k" is not "k_proj" here).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.hosts.adapter import Site
from ...errors import ConfigError
from .lora import Lora
from .lora_config import LoraConfig


@Lora.variant(lambda config: config.use_bdlora is not None)
class BdLora(Lora):
    """A: (r, in / n) or B: (out, r / n): the blocks one below the other; the other factor as in LoRA."""

    kinds = frozenset({"linear", "attention", "parameter"})

    def _shapes(self, site: Site, config: LoraConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        options = config.use_bdlora
        assert options is not None
        self.blocks = options.nblocks
        self.block_A, self.block_B = (
            any(f".{part}." in f".{site.name}." for part in parts or ())
            for parts in (options.target_modules_bd_a, options.target_modules_bd_b)
        )
        if self.block_A + self.block_B != 1 and (options.match_strict or self.block_A):
            lists = "both lists" if self.block_A else "neither list"
            raise ConfigError("exactly one factor can be block-diagonal", where=f"use_bdlora at {site.name}",
                              got=f"named in {lists}", expected="target_modules_bd_a or target_modules_bd_b",
                              fix="name it in one of them, or allow plain LoRA with match_strict=false")  # fmt: skip
        out, width = site.base.shape
        size = width if self.block_A else out
        if (self.block_A or self.block_B) and (self.r % self.blocks or size % self.blocks):
            raise ConfigError("must divide the rank and the layer", where=f"use_bdlora.nblocks at {site.name}",
                              got=self.blocks, expected=f"a divisor of {self.r} and {size}")  # fmt: skip
        n = self.blocks
        return (self.r, width // n if self.block_A else width), (out, self.r // n if self.block_B else self.r)

    def factors(self) -> tuple[Tensor, Tensor]:
        A, B = self.lora_A, self.lora_B
        if self.block_A:
            return self._diagonal(A), B
        return A, self._diagonal(B) if self.block_B else B

    def _diagonal(self, stacked: Tensor) -> Tensor:
        """The blocks that lie one below the other, along the diagonal of a matrix."""
        matrix: Tensor = torch.block_diag(*stacked.chunk(self.blocks))  # type: ignore[no-untyped-call]
        return matrix
