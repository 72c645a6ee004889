"""Products by oneDNN: exact to rounding, differentiable, and only where they are chosen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afina.kernels.cpu import products
from afina.kernels.lora_linear import lora_linear
from afina.kernels.speed import speed_up


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Products of any size by oneDNN, whatever the processor; the shapes of those that were made so."""
    monkeypatch.setattr(products, "ONEDNN", True)
    monkeypatch.setattr(products, "SMALLEST", 1)
    seen, plain = [], products.chooses_onednn

    def chooses(x: Tensor, weight: Tensor) -> bool:
        chosen = plain(x, weight)
        seen.extend([(*x.shape, weight.shape[0])] if chosen else [])
        return chosen

    monkeypatch.setattr(products, "chooses_onednn", chooses)
    return seen


def rand(*shape: int, seed: int = 0, grad: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    out = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return out.requires_grad_(grad)


@pytest.mark.parametrize("bias", [None, rand(40, seed=3)])
def test_products_are_torchs_to_rounding(onednn: list[tuple[int, ...]], bias: Tensor | None) -> None:
    x, w = rand(30, 50), rand(40, 50, seed=1)
    exact = F.linear(x.double(), w.double(), None if bias is None else bias.double())
    for made in (products.linear(x, w, bias), products.linear(x, w.mT.contiguous().mT, bias)):
        assert (made - exact).abs().max() <= 2 * (F.linear(x, w, bias) - exact).abs().max() + 1e-6
    torch.testing.assert_close(products.mm(x.mT, x), x.mT @ x)
    assert len(onednn) == 3


def test_small_products_other_dtypes_and_other_processors_stay_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = rand(2048, 64), rand(64, 64)
    monkeypatch.setattr(products, "ONEDNN", True)
    assert products.chooses_onednn(x, w)
    assert not products.chooses_onednn(x[:4], w)
    for dtype in (torch.bfloat16, torch.float64):
        assert not products.chooses_onednn(x.to(dtype), w.to(dtype))
    monkeypatch.setattr(products, "ONEDNN", False)
    assert not products.chooses_onednn(x, w)


@pytest.mark.parametrize("shape", [(30, 50), (3, 10, 50)])
def test_gradients_of_all_three_are_torchs(onednn: list[tuple[int, ...]], shape: tuple[int, ...]) -> None:
    found = []
    for run in (products.differentiable_linear, F.linear):
        x, w, b = rand(*shape, grad=True), rand(40, 50, seed=1, grad=True), rand(40, seed=2, grad=True)
        run(x, w, b).square().sum().backward()
        found.append([x.grad, w.grad, b.grad])
    torch.testing.assert_close(*found)
    assert len(onednn) == 3


@pytest.mark.parametrize("tokens", [7, 300])  # the factored and the merged order
def test_fused_lora_uses_them_and_is_the_formula(onednn: list[tuple[int, ...]], tokens: int) -> None:
    found = []
    for fused in (True, False):
        x, w = rand(tokens, 50, grad=True), rand(40, 50, seed=1)
        a, b = rand(4, 50, seed=2, grad=True), rand(40, 4, seed=3, grad=True)
        out = lora_linear(x, w, None, a, b, 0.5) if fused else F.linear(x, w) + 0.5 * F.linear(F.linear(x, a), b)
        out.square().sum().backward()
        found.append([out, x.grad, a.grad, b.grad])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-3)  # entries of up to 3,000
    assert (tokens, 50, 40) in onednn


def test_speed_up_gives_float32_layers_their_products(onednn: list[tuple[int, ...]]) -> None:
    model = nn.Sequential(nn.Linear(50, 40), nn.Linear(40, 8).double().requires_grad_(False))
    x, plain = rand(30, 50), model[0](rand(30, 50))
    assert "1 float32 layers by oneDNN" in speed_up(model)[1]
    torch.testing.assert_close(model[0](x), plain)
    assert set(onednn) == {(30, 50, 40)}
    model[0](x).sum().backward()
    assert model[0].weight.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert model[0](x).dtype == torch.bfloat16
    assert type(model[1]) is nn.Linear
    assert speed_up(model)[1] == "products: torch's own"  # nothing is left to be changed


@pytest.mark.parametrize("shape", [(30, 50), (3, 10, 50)])
def test_compiles_without_a_graph_break(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    monkeypatch.setattr(products, "ONEDNN", True)
    monkeypatch.setattr(products, "SMALLEST", 1)
    model = nn.Sequential(nn.Linear(50, 40))
    speed_up(model)
    found = []
    for run in (model, torch.compile(model, fullgraph=True)):
        x = rand(*shape, grad=True)
        out = run(x)
        out.square().sum().backward()
        found.append([out, x.grad])
    torch.testing.assert_close(*found)
