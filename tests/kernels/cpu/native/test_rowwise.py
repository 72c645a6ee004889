"""Passes over rows in C++: the formulas' numbers, in float32 to a millionth, in 16 bits no further off than torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from afina.kernels import backends
from afina.kernels.cpu.native import rowwise as rows
from afina.kernels.loss import _block, _How

pytestmark = pytest.mark.usefixtures("each_library")
DTYPES = (torch.bfloat16, torch.float32)
LIMITS = {torch.bfloat16: 0.0026, torch.float32: 1e-6}
"""Relative errors; a bfloat16 that is rounded twice is off by .0024 in the mean square."""


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(5, 3), (7, 1001), (3, 4096)], ids=str)
def test_losses_and_their_gradients(shape, smoothing, dtype):
    z, y = draw(*shape, dtype=dtype) * 4, torch.arange(shape[0])[:, None] % shape[1]
    leaf = z.double().requires_grad_()
    exact = F.cross_entropy(leaf, y[:, 0], reduction="none", label_smoothing=smoothing)
    (slope,) = torch.autograd.grad(exact.sum(), leaf)
    kept, plain = z.clone(), z.clone()
    torch.testing.assert_close(rows.losses(kept, y, smoothing, False), exact.detach(), rtol=1e-6, atol=1e-6)
    assert torch.equal(kept, z)
    rows.losses(kept, y, smoothing, True)
    _block(plain, y, _How(-100, smoothing), True)
    assert error(kept, slope) <= max(1e-6, 1.001 * error(plain, slope))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_shows_in_loss_and_gradient(value):
    z = draw(2, 50, dtype=torch.bfloat16)
    z[1, 3] = value
    assert rows.losses(z, torch.tensor([[1], [2]]), 0.0, True).isnan().tolist() == [False, True]
    assert z.isnan().sum(1).tolist() == [0, 50]


def test_logits_that_exclude_words_are_fine():
    z = draw(2, 50, dtype=torch.float32)
    z[:, 20:] = -torch.inf
    expected = F.cross_entropy(z, torch.tensor([1, 2]), reduction="none")
    torch.testing.assert_close(rows.losses(z, torch.tensor([[1], [2]]), 0.0, True).float(), expected)
    assert not z[:, 20:].any()


def test_labels_are_integers_of_any_size():
    z, y = draw(4, 50, dtype=torch.float32), torch.tensor([[1], [2], [3], [49]])
    assert torch.equal(rows.losses(z, y.int(), 0.0, False), rows.losses(z, y, 0.0, False))


@pytest.mark.parametrize("label", [-1, 50])
def test_a_label_outside_the_vocabulary_is_refused(label):
    z = draw(2, 50, dtype=torch.float32)
    with pytest.raises(IndexError, match="vocabulary of 50"):
        rows.losses(z, torch.tensor([[1], [label]]), 0.0, True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 16, 37, 576])
def test_norm_and_its_gradient(width, dtype):
    x, g, w = draw(3, 50, width, dtype=dtype), draw(3, 50, width, dtype=dtype, seed=1), draw(width, dtype=dtype, seed=2)
    leaf, weight = x.double().requires_grad_(), w.double().requires_grad_()
    exact = weight * leaf * (leaf.square().mean(-1, keepdim=True) + 0.1).rsqrt()
    slopes = torch.autograd.grad(exact, (leaf, weight), g.double())
    out, kept = rows.rms_norm(x, w, 0.1)
    assert error(out, exact.detach()) < LIMITS[dtype]
    dx, dw = rows.rms_norm_backward(g, x, w, kept, True)
    assert error(dx, slopes[0]) < LIMITS[dtype] + (0.01 if width == 1 else 0)
    assert error(dw, slopes[1]) < LIMITS[dtype]
    assert rows.rms_norm_backward(g, x, w, kept)[1] is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (3, 37), (5, 4097)], ids=str)
def test_gated_products_and_their_gradients(shape, dtype):
    gate, up, g = (draw(*shape, dtype=dtype, seed=i) * 3 for i in range(3))
    leaves = [gate.double().requires_grad_(), up.double().requires_grad_()]
    exact = F.silu(leaves[0]) * leaves[1]
    slopes = torch.autograd.grad(exact, leaves, g.double())
    assert error(rows.gated(gate, up), exact.detach()) < 2 * LIMITS[dtype]
    found = rows.gated_backward(g, gate, up)
    assert all(error(a, b) < 2 * LIMITS[dtype] for a, b in zip(found, slopes, strict=True))


def test_extreme_gates_are_the_limits():
    gate = torch.tensor([-1e30, -100.0, 0.0, 100.0, 1e30, float("nan")])
    ones = torch.ones(6)
    torch.testing.assert_close(rows.gated(gate, ones), F.silu(gate), equal_nan=True)
    slope = torch.ops.aten.silu_backward(ones, gate)
    torch.testing.assert_close(rows.gated_backward(ones, gate, ones)[0], slope, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "each"), [(64, True), (10, False), (2, True)])
def test_turned_heads_and_their_gradients(size, each, dtype):
    q, k = draw(2, 7, 3, size, dtype=dtype).transpose(1, 2), draw(2, 1, 7, size, dtype=dtype, seed=1)
    cos, sin = (draw(2 if each else 1, 7, size, dtype=dtype, seed=i) for i in (2, 3))
    leaves = [q.double().requires_grad_(), k.double().requires_grad_()]
    exact = apply_rotary_pos_emb(*leaves, cos.double(), sin.double())
    found = rows.turn(q, k, cos, sin)
    assert backends.can_turn(q, k, cos, sin)
    torch.testing.assert_close(found, apply_rotary_pos_emb(q, k, cos, sin), atol=0, rtol=0)
    slopes = torch.autograd.grad([x.sum() for x in exact] + [exact[0].square().sum()], leaves)
    back = rows.turn((1 + 2 * exact[0]).to(dtype), torch.ones_like(k), cos, sin, back=True)
    assert all(error(a, b) < 2 * LIMITS[dtype] for a, b in zip(back, slopes, strict=True))


def test_other_heads_are_left_to_torch():
    q, k, angles = torch.zeros(2, 3, 7, 8), torch.zeros(2, 1, 7, 8), torch.zeros(1, 7, 8)
    assert backends.can_turn(q, k, angles, angles)
    assert not backends.can_turn(q, k, angles[..., :4], angles[..., :4])
    assert not backends.can_turn(q.bfloat16(), k, angles, angles)
    assert not backends.can_turn(q, k, angles.expand(3, 7, 8).contiguous(), angles.expand(3, 7, 8).contiguous())
    assert not backends.can_turn(q[..., :7], k[..., :7], angles[..., :7].contiguous(), angles[..., :7].contiguous())


def test_other_tensors_are_left_to_torch():
    x = torch.zeros(4, 6)
    assert rows.fits(x)
    assert not any(rows.fits(t) for t in (x.half(), x.double(), x.mT, x.to("meta")))
    assert not rows.fits(x, x.bfloat16())
    with FlopCounterMode(display=False):  # follows torch's operations
        assert not rows.fits(x)
    assert not rows.fits(x.as_subclass(type("Shard", (Tensor,), {})))
