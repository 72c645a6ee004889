"""Small layers, data, and the reference as an oracle for starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

IN, OUT, RANK, ALPHA = 24, 32, 4, 8
SCALE = ALPHA / RANK


def rows(n: int = 200, seed: int = 5) -> Tensor:
    """Inputs of unequal variance and non-zero mean."""
    x = torch.randn(n, IN, generator=torch.Generator().manual_seed(seed))
    return x * torch.linspace(0.2, 3, IN) + 0.5


def labels(n: int = 200) -> Tensor:
    return torch.randn(n, OUT, generator=torch.Generator().manual_seed(6))


def one_layer() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(IN, OUT, bias=False))


def weight() -> Tensor:
    return one_layer()[0].weight.detach()


def product(start: Any, scale: float = SCALE) -> Tensor:
    """What the start adds to the weight's place: s · B A."""
    return scale * start.B_OR @ start.A_RI


def relative(got: Tensor, want: Tensor) -> float:
    got, want = got.detach(), want.detach()
    return float((got - want).norm() / want.norm())


def best_approximation(matrix: Tensor, rank: int) -> Tensor:
    U, S, Vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return ((U[:, :rank] * S[:rank]) @ Vh[:rank]).float()


def reference_start(init: str, prepare: Any = None, seed: int = 1, **config: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The reference's (A, B, what it took from the base weight) on `one_layer()`."""
    import peft

    model = one_layer()
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], init_lora_weights=init, **config)
    if prepare is not None:
        prepare(model, settings)
    torch.manual_seed(seed)
    layer = peft.get_peft_model(model, settings).base_model.model[0]
    taken = weight() - layer.base_layer.weight.detach()
    return layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach(), taken
