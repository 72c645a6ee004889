"""LoRA+, LoRA-FA and Riemannian preconditioned LoRA."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from afina import LoraConfig, get_peft_model
from afina.errors import ConfigError
from afina.optimizers import (
    LoraFAOptimizer,
    create_lorafa_optimizer,
    create_loraplus_optimizer,
    create_riemannian_optimizer,
)

R, ALPHA = 3, 6


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.a, self.n, self.h = nn.Embedding(20, 16), nn.Linear(16, 12), nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.n(torch.tanh(self.a(self.e(x)))))


def whole() -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(
        Model(), LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["e", "a"], modules_to_save=["n", "h"])
    )


def linear(library=None) -> tuple[nn.Module, nn.Parameter, nn.Parameter]:
    """A model, its A and its B, both filled; the same numbers for afina and for the reference."""
    get, config = (get_peft_model, LoraConfig) if library is None else (library.get_peft_model, library.LoraConfig)
    torch.manual_seed(0)
    model = get(nn.Sequential(nn.Linear(16, 12)), config(r=R, lora_alpha=ALPHA, target_modules=["0"]))
    layer = model.base_model.model[0]
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        g = torch.Generator().manual_seed(1)
        A.copy_(torch.randn(A.shape, generator=g))
        B.copy_(torch.randn(B.shape, generator=g))
    return model, A, B


X, Y = torch.randn(30, 16, generator=torch.Generator().manual_seed(2)), torch.randn(30, 12)


def backward(model: nn.Module) -> None:
    model.zero_grad()
    mse_loss(model(X), Y).backward()


def groups(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def test_loraplus_gives_b_the_larger_rate_and_decays_no_vector():
    model = whole()
    got = groups(
        create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, weight_decay=0.1), model
    )
    assert set(got) == {n for n, p in model.named_parameters() if p.requires_grad}
    by_shape = {(tuple(dict(model.named_parameters())[n].shape)): v for n, v in got.items()}
    assert by_shape[(R, 16)] == (1e-3, 0.1)  # A
    assert by_shape[(12, R)] == (16e-3, 0.1)  # B
    assert by_shape[(R, 20)] == by_shape[(16, R)] == (1e-6, 0.1)  # the embedding's pair
    assert by_shape[(5, 12)] == (1e-3, 0.1)
    assert by_shape[(5,)] == by_shape[(12,)] == (1e-3, 0.0)


def test_loraplus_agrees_with_the_reference_on_lora_matrices():
    peft = pytest.importorskip("peft")
    from peft.optimizers import create_loraplus_optimizer as reference

    settings = {"lr": 1e-3, "loraplus_lr_ratio": 8, "loraplus_weight_decay": 0.1}
    ours, theirs = linear()[0], linear(peft)[0]
    a = sorted(groups(create_loraplus_optimizer(ours, torch.optim.AdamW, **settings), ours).values())
    b = sorted(groups(reference(theirs, torch.optim.AdamW, **settings), theirs).values())
    assert a == b == [(1e-3, 0.1), (8e-3, 0.1)]


def test_loraplus_passes_settings_on():
    optimizer = create_loraplus_optimizer(
        whole(), torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=4, betas=(0.5, 0.6), eps=1e-3
    )
    assert {(g["betas"], g["eps"]) for g in optimizer.param_groups} == {((0.5, 0.6), 1e-3)}


def test_loraplus_embedding_rate():
    model = whole()
    optimizer = create_loraplus_optimizer(
        model, torch.optim.SGD, lr=1e-3, loraplus_lr_ratio=4, loraplus_lr_embedding=5e-3
    )
    assert sum(rate == 5e-3 for rate, _ in groups(optimizer, model).values()) == 2


@pytest.mark.parametrize("ratio", [0.5, -1, float("nan"), float("inf")])
def test_loraplus_ratio_below_one_is_refused(ratio):
    with pytest.raises(ConfigError, match="loraplus_lr_ratio"):
        create_loraplus_optimizer(whole(), torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=ratio)


def test_riemannian_step_is_that_of_the_formula_and_of_the_reference():
    peft = pytest.importorskip("peft")
    from peft.optimizers import create_riemannian_optimizer as reference

    model, A, B = linear()
    other, A2, B2 = linear(peft)
    optimizer = create_riemannian_optimizer(model, torch.optim.SGD, lr=0.1, reg=0.01)
    theirs = reference(other, torch.optim.SGD, lr=0.1, reg=0.01)
    backward(model)
    backward(other)
    eye = 0.01 * torch.eye(R)
    want_a = A - 0.1 * torch.linalg.inv(B.mT @ B + eye) @ A.grad
    want_b = B - 0.1 * B.grad @ torch.linalg.inv(A @ A.mT + eye)
    optimizer.step()
    theirs.step()
    torch.testing.assert_close(A, want_a)
    torch.testing.assert_close(B, want_b)
    torch.testing.assert_close(A, A2)
    torch.testing.assert_close(B, B2)


def test_riemannian_step_does_not_depend_on_how_the_product_is_split():
    products = []
    for c in (1.0, 10.0):
        model, A, B = linear()
        with torch.no_grad():
            A.mul_(c)
            B.div_(c)
        optimizer = create_riemannian_optimizer(model, torch.optim.SGD, lr=1e-3, reg=1e-9)
        backward(model)
        optimizer.step()
        products.append((B @ A).detach())
    torch.testing.assert_close(*products, rtol=1e-4, atol=1e-4)


def test_gradients_are_what_backward_left_after_a_step():
    model, A, B = linear()
    for optimizer in (
        create_riemannian_optimizer(model, torch.optim.AdamW, lr=1e-3),
        create_lorafa_optimizer(model, R, ALPHA, 1e-3),
    ):
        backward(model)
        grads = [p.grad.clone() for p in (A, B) if p.requires_grad]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip([p for p in (A, B) if p.requires_grad], grads, strict=True))


def test_a_closure_is_refused():
    optimizer = create_riemannian_optimizer(linear()[0], torch.optim.SGD, lr=1e-3)
    with pytest.raises(ConfigError, match="closure"):
        optimizer.step(lambda: torch.tensor(0.0))


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, dict, "AdamW"], ids=str)
def test_what_cannot_take_changed_gradients_is_refused(kind):
    with pytest.raises(ConfigError, match="optimizer"):
        create_riemannian_optimizer(linear()[0], kind, lr=1e-3)


def test_lorafa_freezes_a_and_moves_b_by_adamw_on_the_corrected_gradient():
    model, A, B = linear()
    optimizer = create_lorafa_optimizer(model, R, ALPHA, 1e-2, weight_decay=0.1)
    assert not A.requires_grad
    twin = B.detach().clone().requires_grad_()
    adamw = torch.optim.AdamW([twin], lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        backward(model)
        twin.grad = B.grad @ torch.linalg.inv(A @ A.mT) / (ALPHA / R) ** 2
        optimizer.step()
        adamw.step()
        torch.testing.assert_close(B, twin, rtol=1e-4, atol=1e-5)


def test_the_class_takes_groups_with_names_as_the_references():
    model, A, B = linear()
    A.requires_grad_(False)
    made, out = create_lorafa_optimizer(model, R, ALPHA, 1e-2), []
    assert isinstance(made, LoraFAOptimizer)
    group = {"params": [A, B], "names": ["0.lora_A.weight", "0.lora_B.weight"], "scaling_factors": [ALPHA / R] * 2}
    for optimizer in (made, LoraFAOptimizer([group], lr=1e-2)):
        start = B.detach().clone()
        backward(model)
        optimizer.step()
        out.append((B - start).detach())
        B.data.copy_(start)
    assert out[0].abs().max() > 0
    torch.testing.assert_close(*out)


def test_the_class_refuses_groups_that_say_too_little():
    _, A, B = linear()
    with pytest.raises(ConfigError, match="scaling_factors"):
        LoraFAOptimizer([{"params": [A, B], "names": ["lora_A", "lora_B"]}])
    with pytest.raises(ConfigError, match="correct_bias"):
        LoraFAOptimizer([{"params": [A, B]}], correct_bias=False)


def test_lorafa_correction_moves_the_weight_along_its_own_gradient():
    """With A frozen and square, s · dB A is then W's own gradient."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(R, 12, bias=False))
    model = get_peft_model(base, LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["0"]))
    layer = model.base_model.model[0]
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    twin = nn.Linear(R, 12, bias=False)
    twin.weight.data.copy_(layer.base_layer.weight)
    optimizer = create_lorafa_optimizer(model, R, ALPHA, 1e-2)
    x = X[:, :R]
    mse_loss(model(x), Y).backward()
    mse_loss(twin(x), Y).backward()
    seen = {}
    optimizer.register_step_pre_hook(lambda *_: seen.update(grad=B.grad.clone()))
    optimizer.step()
    torch.testing.assert_close(ALPHA / R * seen["grad"] @ A, twin.weight.grad, rtol=1e-3, atol=1e-5)


def test_settings_that_differ_from_the_adapter_are_refused():
    with pytest.raises(ConfigError, match="differs"):
        create_lorafa_optimizer(linear()[0], R + 1, ALPHA, 1e-3)


@pytest.mark.parametrize("reg", [0.0, -1.0, float("nan")])
def test_riemannian_damping_must_be_positive(reg):
    with pytest.raises(ConfigError, match="reg"):
        create_riemannian_optimizer(linear()[0], torch.optim.SGD, lr=1e-3, reg=reg)


def test_a_model_without_lora_is_refused():
    with pytest.raises(ConfigError, match="no trainable LoRA"):
        create_loraplus_optimizer(nn.Linear(2, 2), torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=2)


@pytest.mark.parametrize("make", ["plus", "fa", "riemannian"])
def test_training_lowers_the_loss_under_a_schedule(make):
    model, _, _ = linear()
    optimizer = {
        "plus": lambda: create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16),
        "fa": lambda: create_lorafa_optimizer(model, R, ALPHA, 1e-2),
        "riemannian": lambda: create_riemannian_optimizer(model, torch.optim.AdamW, lr=1e-2),
    }[make]()
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=30)
    losses = []
    for _ in range(30):
        backward(model)
        losses.append(mse_loss(model(X), Y).item())
        optimizer.step()
        schedule.step()
    assert losses[-1] < losses[0]
