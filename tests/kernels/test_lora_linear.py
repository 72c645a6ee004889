from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from afina import LoraConfig, get_peft_model
from afina.kernels import lora_linear as low_rank
from afina.kernels.lora_linear import add_low_rank, is_plain_linear, lora_linear, merged_is_cheaper


def numbers(tokens, dtype=torch.float64, rank=3, width=7, out=5, scale=0.7):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x, w, bias = random(2, tokens, width), random(out, width), random(out)
    a, b = random(rank, width), random(out, rank)
    return [t.requires_grad_(i in (0, 3, 4)) for i, t in enumerate((x, w, bias, a, b))], scale


def plain(x, w, bias, a, b, scale):
    return F.linear(x, w, bias) + scale * F.linear(F.linear(x, a), b)


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_are_those_of_the_formula_in_both_orders(tokens, with_bias):
    (x, w, bias, a, b), scale = numbers(tokens)
    bias = bias if with_bias else None
    assert merged_is_cheaper(2 * tokens, w) == (tokens == 40)
    assert torch.allclose(lora_linear(x, w, bias, a, b, scale), plain(x, w, bias, a, b, scale), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x, a, b: lora_linear(x, w, bias, a, b, scale), (x, a, b), atol=1e-6)


def test_gradients_of_the_added_part_are_those_of_the_formula():
    (x, w, bias, a, b), scale = numbers(3)
    y = F.linear(x, w, bias).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda y, x, a, b: add_low_rank(y, x, a, b, scale), (y, x, a, b), atol=1e-6)
    expected = y + scale * F.linear(F.linear(x, a), b)
    assert torch.allclose(add_low_rank(y, x, a, b, scale), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("function", ["lora_linear", "add_low_rank", "differentiable_linear"])
def test_what_it_gives_may_be_written_into(function):
    """As wav2vec 2.0 blanks what is padding."""
    from afina.kernels.cpu.products import differentiable_linear

    x, w, a, b = (torch.randn(shape, requires_grad=True) for shape in ((2, 3, 8), (6, 8), (2, 8), (6, 2)))
    run = {"lora_linear": lambda: lora_linear(x, w.detach(), None, a, b, 1.0),
           "add_low_rank": lambda: add_low_rank(x @ w.mT, x, a, b, 1.0),
           "differentiable_linear": lambda: differentiable_linear(x, w, None)}[function]  # fmt: skip
    y, kept = run(), torch.ones(2, 3, dtype=torch.bool)
    kept[1, 2:] = False
    y[~kept] = 0
    (got,) = torch.autograd.grad(y.square().sum(), x)
    (expected,) = torch.autograd.grad((run() * kept[..., None]).square().sum(), x)
    torch.testing.assert_close(got, expected)
    assert (got[1, 2] == 0).all()
    assert got[1, 1].abs().sum() > 0


@pytest.mark.parametrize("tokens", [1, 40])
def test_scale_may_be_a_tensor(tokens):
    (x, w, bias, a, b), scale = numbers(tokens)
    held = torch.tensor(scale, dtype=torch.float64)
    out = lora_linear(x, w, bias, a, b, held)
    assert torch.allclose(out, plain(x, w, bias, a, b, scale), atol=1e-12)
    grads = torch.autograd.grad(out.square().sum(), (x, a, b))
    expected = torch.autograd.grad(plain(x, w, bias, a, b, scale).square().sum(), (x, a, b))
    assert all(torch.allclose(g, e, atol=1e-10) for g, e in zip(grads, expected, strict=True))


@pytest.mark.parametrize("tokens", [4, 40])
def test_float32_factors_on_a_bfloat16_layer_are_as_near_as_the_plain_formula(tokens):
    (x, w, bias, a, b), scale = numbers(tokens, torch.bfloat16, width=64, out=48)
    a, b = (t.detach().float().requires_grad_() for t in (a, b))
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in (x, w, bias, a, b)]
    target = plain(*exact, scale)
    fast, slow = lora_linear(x, w, bias, a, b, scale), plain(x.float(), w.float(), bias.float(), a, b, scale).bfloat16()
    assert fast.dtype == torch.bfloat16
    size = target.abs().max()
    assert (fast.double() - target).abs().max() / size < 2 * (slow.double() - target).abs().max() / size + 1e-3
    wanted = torch.autograd.grad(target.sum(), [exact[0], *exact[3:]])
    for got, true in zip(torch.autograd.grad(fast.sum(), (x, a, b)), wanted, strict=True):
        assert (got.double() - true).abs().max() / true.abs().max() < 0.02  # bfloat16 keeps 8 bits


def test_only_what_trains_gets_gradients():
    (x, w, bias, a, b), scale = numbers(3)
    lora_linear(x.detach(), w, bias, a, b.detach(), scale).sum().backward()
    assert a.grad is not None
    assert b.grad is None
    assert x.grad is None


@pytest.fixture
def counted(monkeypatch):
    """How often each operation ran."""
    calls = {"lora_linear": 0, "add_low_rank": 0}

    def count(name):
        own = getattr(low_rank, name)

        def run(*args):
            calls[name] += 1
            return own(*args)

        monkeypatch.setattr(f"afina.methods.reparam.lora_fast.{name}", run)

    for name in calls:
        count(name)
    return calls


def model(**options):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    fields = {"r": 2, "target_modules": ["0", "2"], "init_lora_weights": False, **options}
    return get_peft_model(base, LoraConfig(**fields))


@pytest.mark.parametrize(("options", "whole", "added"), [
    ({}, 2, 0), ({"lora_dropout": 0.5}, 0, 2), ({"use_rslora": True}, 2, 0), ({"init_lora_weights": "pissa"}, 2, 0),
])  # fmt: skip
def test_linear_layers_take_the_fast_path(counted, options, whole, added):
    out = model(**options).train()(torch.randn(3, 8))
    out.sum().backward()
    assert counted == {"lora_linear": whole, "add_low_rank": added}


def test_several_adapters_take_it_too(counted):
    two = model()
    two.add_adapter("b", LoraConfig(r=3, target_modules=["0", "2"], init_lora_weights=False))
    two.set_adapter(["default", "b"])
    x = torch.randn(3, 8)
    out = two(x)
    assert counted == {"lora_linear": 2, "add_low_rank": 2}
    two.merge_adapter()
    assert torch.allclose(two(x), out, atol=1e-6)


def test_trained_hooked_and_quantised_layers_are_called(counted):
    hooked = model()
    layer = hooked.base_model.model[0].base_layer
    seen = []
    layer.register_forward_hook(lambda *_: seen.append(1))
    assert not is_plain_linear(layer)
    hooked(torch.randn(3, 8))
    assert seen == [1]
    assert counted == {"lora_linear": 1, "add_low_rank": 1}
    layer = nn.Linear(3, 3)
    assert not is_plain_linear(layer)
    assert is_plain_linear(layer.requires_grad_(False))


def test_it_compiles_without_a_break():
    own = model()
    x = torch.randn(3, 8)
    torch._dynamo.reset()
    compiled = torch.compile(own, backend="aot_eager", fullgraph=True)
    out = compiled(x)
    assert torch.allclose(out, own(x), atol=1e-6)
    out.sum().backward()
    grads = [p.grad.clone() for p in own.parameters() if p.requires_grad]
    own.zero_grad()
    own(x).sum().backward()
    plain_grads = [p.grad for p in own.parameters() if p.requires_grad]
    assert all(torch.allclose(g, e, atol=1e-6) for g, e in zip(grads, plain_grads, strict=True))
