from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from afina.kernels import loss as losses
from afina.kernels.loss import linear_cross_entropy, logits_and_loss, supervised_loss


def numbers(dtype=torch.float64, count=23, width=6, vocabulary=17):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, width, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(0, vocabulary, (count,), generator=generator)
    targets[::3] = -100
    return hidden.requires_grad_(), weight, targets


def plain(hidden, weight, targets, *, bias=None, label_smoothing=0.0, softcap=None, count=None):
    logits = F.linear(hidden, weight, bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    total = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="sum")
    return total / ((targets != -100).sum() if count is None else count)


OPTIONS = [{}, {"label_smoothing": 0.1}, {"softcap": 2.0}, {"softcap": 3.0, "label_smoothing": 0.2}, {"count": 5.0}]


@pytest.mark.parametrize("memory", [1, 17 * 4 * 5, 2**26])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_and_gradients_are_those_of_the_formula_for_every_chunk(options, memory):
    hidden, weight, targets = numbers()
    weight.requires_grad_()
    fast, slow = (
        linear_cross_entropy(hidden, weight, targets, memory=memory, **options),
        plain(hidden, weight, targets, **options),
    )
    assert torch.allclose(fast, slow, rtol=1e-12)
    got, true = (torch.autograd.grad(loss * 3, (hidden, weight)) for loss in (fast, slow))
    assert all(torch.allclose(g, t, atol=1e-12) for g, t in zip(got, true, strict=True))


def test_float32_is_exact_to_a_millionth(either):
    hidden, weight, targets = numbers(torch.float32, count=200, width=32, vocabulary=1000)
    bias = torch.randn(1000)
    fast, slow = linear_cross_entropy(hidden, weight, targets, bias=bias), plain(hidden, weight, targets, bias=bias)
    assert abs(float(fast - slow)) < 1e-6 * float(slow)
    got, true = torch.autograd.grad(fast, hidden)[0], torch.autograd.grad(slow, hidden)[0]
    assert (got - true).abs().max() < 1e-6


def test_unlikely_targets_stay_finite(either):
    hidden, weight, targets = numbers(torch.float32)
    loss = linear_cross_entropy(hidden * 1e4, weight, targets)
    assert torch.isfinite(loss)
    assert torch.allclose(loss, plain(hidden * 1e4, weight, targets))


def test_gradients_pass_gradcheck():
    hidden, weight, targets = numbers(count=7)
    weight.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets, softcap=4.0, label_smoothing=0.1, memory=100), (hidden, weight)
    )


def test_without_gradients_only_the_loss_is_computed():
    hidden, weight, targets = numbers()
    with torch.no_grad():
        assert torch.allclose(linear_cross_entropy(hidden, weight, targets), plain(hidden, weight, targets))


@pytest.mark.parametrize("count", [None, 7])
def test_loss_of_all_logits_is_the_one_of_transformers(count):
    from transformers.loss.loss_utils import ForCausalLMLoss

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 9, 17, generator=generator, requires_grad=True)
    labels = torch.randint(0, 17, (2, 9), generator=generator)
    labels[:, :4] = -100
    for arguments in ({"labels": labels}, {"labels": labels, "shift_labels": labels.roll(1)}):
        fast, slow = (
            f(logits=logits, vocab_size=17, num_items_in_batch=count, **arguments)
            for f in (supervised_loss, ForCausalLMLoss)
        )
        assert torch.allclose(fast, slow, rtol=1e-6)
        got, true = (torch.autograd.grad(loss, logits)[0] for loss in (fast, slow))
        assert torch.allclose(got, true, atol=1e-7)


@pytest.mark.parametrize("use", ["loss", "logits", "both"])
def test_loss_with_logits_sends_the_gradients_of_both(use, monkeypatch):
    monkeypatch.setattr(losses, "CACHED", 40)
    hidden, weight, targets = numbers()
    weight.requires_grad_()
    bias, other = torch.randn(17, dtype=torch.float64), torch.randn(23, 17, dtype=torch.float64)
    fast, logits = logits_and_loss(hidden, weight, targets, bias=bias)
    true_logits = F.linear(hidden, weight, bias)
    slow = F.cross_entropy(true_logits, targets)
    assert torch.allclose(fast, slow, rtol=1e-12)
    assert torch.equal(logits, true_logits)
    parts = {"loss": (1, 0), "logits": (0, 1), "both": (3, 2)}[use]
    got, true = (
        torch.autograd.grad(
            sum(f * p for f, p in zip(parts, (x, (z * other).sum()), strict=True) if f), (hidden, weight)
        )
        for x, z in ((fast, logits), (slow, true_logits))
    )
    assert all(torch.allclose(g, t, atol=1e-12) for g, t in zip(got, true, strict=True))


@pytest.mark.parametrize(("supervised", "room"), [(7, 7), (7, 12), (1, 24), (24, 24)])
def test_with_room_to_spare_the_loss_and_its_gradient_are_the_same(supervised, room):
    torch.manual_seed(0)
    hidden, weight = torch.randn(24, 8, dtype=torch.float64, requires_grad=True), torch.randn(30, 8).double()
    targets = torch.randint(30, (24,)).where(torch.randperm(24) < supervised, -100)
    found = []
    for how in ({}, {"room": room, "memory": 4 * 30 * 5}):
        loss = linear_cross_entropy(hidden, weight, targets, **how)
        found.append((loss.detach(), *torch.autograd.grad(loss, hidden)))
    torch.testing.assert_close(*found)
    assert found[0][1].any()


@pytest.mark.parametrize("trains_head", [False, True])
@pytest.mark.parametrize("uses_logits", [None, False, True])
def test_under_autocast_gradients_are_near_those_of_float32(uses_logits, trains_head):
    """None: without logits."""
    found = []
    for autocast in (False, True):
        hidden, weight, targets = numbers(torch.float32)
        weight.requires_grad_(trains_head)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if uses_logits is None:
                total = linear_cross_entropy(hidden, weight, targets, memory=17 * 4 * 5)
            else:
                total, logits = logits_and_loss(hidden, weight, targets)
                total = total + (logits.float().square().mean() if uses_logits else 0)
        leaves = [hidden, *([weight] if trains_head else [])]
        found.append(torch.autograd.grad(total, leaves))
    for exact, near in zip(*found, strict=True):
        assert near.dtype == torch.float32
        assert 0 < (near - exact).norm() <= 1e-2 * exact.norm()
