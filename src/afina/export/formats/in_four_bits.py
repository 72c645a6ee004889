"""Merged weights rounded to bitsandbytes' NF4, as transformers reads them, and how much of the updates that loses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ...core.hosts.host import Host
from ...core.hosts.walk import outside_adapters
from ...core.inject.places import plain_path

BLOCK = 64
"""Numbers that share a scale."""


@dataclass
class Rounding:
    """Rounds the weights of linear layers, but for the output head's.

    Attributes:
        weights: their names.
        kept: linear layers that stay as they are.
        update: ||ΔW||² over all layers with an adapter.
        lost: ||Q(W + ΔW) - (W + ΔW)||² over the same.
    """

    weights: frozenset[str] = frozenset()
    kept: list[str] = field(default_factory=list)
    update: float = 0.0
    lost: float = 0.0

    @classmethod
    def of(cls, model: Any) -> Rounding:
        """For a model, with hosts in it or not."""
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        linear, kept = set(), []
        for path, module in outside_adapters(model):
            if isinstance(module, Host) or not isinstance(module, nn.Linear):
                continue
            plain = plain_path(path)
            is_head = head is not None and (module is head or getattr(head, "base_layer", None) is module)
            kept += [plain] if is_head else []
            linear |= set() if is_head else {f"{plain}.weight"}
        return cls(frozenset(linear), kept)

    def stored(self, name: str, weight: Tensor, before: Tensor | None) -> dict[str, Tensor]:
        """Name in the file -> tensor.

        Args:
            weight: with the adapter in it.
            before: without; None where no adapter changed it.
        """
        from bitsandbytes import functional

        packed, state = functional.quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
        if before is not None:
            again = functional.dequantize_4bit(packed, state).float()
            self.update += float((weight.float() - before.float()).square().sum())
            self.lost += float((again - weight.float()).square().sum())
        return {name: packed, **{f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}}

    @property
    def told(self) -> str:
        """How much was lost, in words."""
        if not self.update:
            return "no adapted layer was rounded"
        return f"rounding moved the adapted weights by {math.sqrt(self.lost / self.update):.2g} times their update"

    def settings(self, dtype: Any) -> dict[str, Any]:
        """What `config.json` says of it."""
        return {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False, "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
            "llm_int8_skip_modules": self.kept or ["lm_head"],
        }  # fmt: skip
