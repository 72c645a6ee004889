"""Layers as operators: what `BaseWeight` promises of every kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from afina.core.layers.recognise import base_weight
from afina.errors import NotAWeight

from ...battery.kinds import KINDS, Experts, Matrix, ScaledEmbedding


def layers() -> list[Any]:
    """(layer, input) of every kind that computes with one weight."""
    out = []
    for name in ("linear", "transposed_linear", "conv1d", "dilated_conv1d", "conv2d", "padded_conv2d", "conv3d"):
        model = KINDS[name].build()
        out.append(pytest.param(model.first, KINDS[name].inputs()[0], id=name))
    tokens = torch.tensor([[1, 5, 0]])
    out.append(pytest.param(nn.Embedding(13, 8, padding_idx=0), tokens, id="embedding"))
    out.append(pytest.param(ScaledEmbedding(13, 8), tokens, id="scaled_embedding"))
    out.append(pytest.param(nn.Conv2d(8, 12, 3, groups=4), torch.randn(2, 8, 5, 5), id="grouped"))
    return out


@pytest.mark.parametrize(("layer", "x"), layers())
def test_applying_its_own_weight_is_the_layer(layer: nn.Module, x: torch.Tensor) -> None:
    base = base_weight(layer)
    assert torch.allclose(base.apply(x, *base.read()), layer(x), atol=1e-6)


@pytest.mark.parametrize(("layer", "x"), layers())
def test_stored_is_the_inverse_of_canonical(layer: nn.Module, x: torch.Tensor) -> None:
    base = base_weight(layer)
    weight, _ = base.read()
    assert tuple(weight.shape) == base.shape
    assert torch.equal(base.stored(weight), base.weight)
    assert (base.out_features, base.in_features) == tuple(weight.shape[:2])


@pytest.mark.parametrize(("layer", "x"), layers())
def test_operator_is_additive_in_its_weight(layer: nn.Module, x: torch.Tensor) -> None:
    base = base_weight(layer)
    weight, bias = base.read()
    change = torch.randn_like(weight)
    both = base.apply(x, weight + change, bias)
    assert torch.allclose(both, base.apply(x, weight, bias) + base.apply(x, change, None), atol=1e-4)


@pytest.mark.parametrize(("layer", "x"), [p for p in layers() if p.id != "grouped"])
def test_factored_product_equals_the_dense_one(layer: nn.Module, x: torch.Tensor) -> None:
    base = base_weight(layer)
    out, width, *kernel = base.shape
    a, b = torch.randn(3, width, *kernel), torch.randn(out, 3, *(1 for _ in kernel))
    dense = (b.flatten(1) @ a.flatten(1)).view(base.shape)
    assert torch.allclose(base.low_rank(x, a, b), base.apply(x, dense, None), atol=1e-4)


@pytest.mark.parametrize(("layer", "x"), layers())
def test_replace_keeps_the_old_parameters_for_whoever_holds_them(layer: nn.Module, x: torch.Tensor) -> None:
    base = base_weight(layer)
    kept, old = base.parameters(), base.weight
    bits = old.detach().clone()
    base.replace(base.read()[0] + 1, None)
    assert base.weight is not old
    assert not base.weight.requires_grad
    assert torch.equal(old, bits)
    base.restore(kept)
    assert base.weight is old


def test_padded_rows_get_no_gradient() -> None:
    layer = nn.Embedding(5, 3, padding_idx=2)
    base = base_weight(layer)
    weight = base.read()[0].detach().requires_grad_(True)
    base.apply(torch.tensor([2, 1]), weight, None).sum().backward()
    assert not weight.grad[:, 2].any()
    assert weight.grad[:, 1].any()


@pytest.mark.parametrize(
    ("module", "name", "kind", "shape"),
    [
        (Matrix(), "matrix", "parameter", (12, 8)),
        (Experts(False), "up", "experts", (3, 12, 8)),
        (Experts(True), "up", "experts", (3, 12, 8)),
    ],
)
def test_named_parameters_are_canonical(module: nn.Module, name: str, kind: str, shape: tuple[int, ...]) -> None:
    base = base_weight(module, name)
    assert (base.kind, base.shape) == (kind, shape)
    assert (base.out_features, base.in_features) == (12, 8)


def test_other_parameters_and_modules_say_what_they_are_not() -> None:
    with pytest.raises(NotAWeight, match="2-D and 3-D"):
        base_weight(nn.LayerNorm(4), "weight")
    with pytest.raises(NotAWeight, match="no weight"):
        base_weight(nn.ReLU()).read()
    with pytest.raises(NotAWeight, match="no factored form"):
        base_weight(nn.LayerNorm(4)).low_rank(torch.ones(1, 4), torch.ones(1, 4), torch.ones(4, 1))
