"""LoRA-GA: directions of the loss's gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from afina import LoraConfig, get_peft_model
from afina.errors import ConfigError
from afina.methods.initialisers import lora_ga
from afina.methods.initialisers.lora_ga import LoraGAConfig, preprocess_loraga

from .cases import OUT, RANK, SCALE, labels, one_layer, product, reference_start, relative, rows, weight


def config(**options) -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=8, target_modules=["0"], init_lora_weights="lora_ga", lora_ga_config=options)


def gradient() -> torch.Tensor:
    base = one_layer()
    mse_loss(base(rows()), labels()).backward()
    return base[0].weight.grad


@pytest.mark.parametrize(
    ("direction", "for_a", "for_b"),
    [
        ("ArB2r", [0, 1, 2, 3], [4, 5, 6, 7]),
        ("A2rBr", [4, 5, 6, 7], [0, 1, 2, 3]),
        ("ArBr", [1, 3, 5, 7], [0, 2, 4, 6]),
    ],
)
def test_directions_are_singular_vectors_of_the_gradient_as_in_the_reference(direction, for_a, for_b):
    U, _, Vh = torch.linalg.svd(gradient(), full_matrices=False)
    start = lora_ga(weight(), RANK, SCALE, gradient(), LoraGAConfig(direction=direction, scale="unit"))
    torch.testing.assert_close(start.A_RI @ Vh[for_a].mT, torch.eye(RANK), atol=1e-5, rtol=0)
    torch.testing.assert_close(start.B_OR.mT @ U[:, for_b], torch.eye(RANK), atol=1e-5, rtol=0)

    import peft

    def prepare(model, settings):
        peft.preprocess_loraga(model, settings, lambda: mse_loss(model(rows()), labels()).backward())

    options = peft.LoraGAConfig(direction=direction, scale="unit")
    A, B, _ = reference_start("lora_ga", prepare, lora_ga_config=options)
    # The reference multiplies B's columns by the gradient's singular values; the directions are the same.
    torch.testing.assert_close((A @ start.A_RI.mT).abs(), torch.eye(RANK), atol=1e-3, rtol=0)
    torch.testing.assert_close(((B / B.norm(dim=0)).mT @ start.B_OR).abs(), torch.eye(RANK), atol=1e-3, rtol=0)


def test_random_takes_two_disjoint_halves():
    U, _, Vh = torch.linalg.svd(gradient(), full_matrices=False)
    start = lora_ga(weight(), RANK, SCALE, gradient(), LoraGAConfig(direction="random", scale="unit"))
    taken = [*(start.A_RI @ Vh.mT).abs().argmax(1).tolist(), *(start.B_OR.mT @ U).abs().argmax(1).tolist()]
    assert sorted(taken) == list(range(2 * RANK))


@pytest.mark.parametrize(
    ("scale", "size"),
    [
        ("stable", OUT**0.25 / 16**0.5),
        ("gd_scale", 1 / SCALE),
        ("unit", 1.0),
        ("weight_svd", (torch.linalg.svdvals(weight())[:RANK].mean().item() / SCALE) ** 0.5),
    ],
)
def test_both_factors_have_the_size_of_the_formula(scale, size):
    start = lora_ga(weight(), RANK, SCALE, gradient(), LoraGAConfig(scale=scale))
    torch.testing.assert_close(start.A_RI.norm(dim=1), torch.full((RANK,), size))
    torch.testing.assert_close(start.B_OR.norm(dim=0), torch.full((RANK,), size))


def test_the_scale_of_the_loss_does_not_matter():
    one, ten = (lora_ga(weight(), RANK, SCALE, c * gradient(), LoraGAConfig()) for c in (1, 10))
    assert relative(product(one), product(ten)) < 1e-4


def test_first_step_lies_closer_to_full_fine_tuning_than_lora_from_zero():
    G, first = gradient(), {}
    torch.manual_seed(0)
    A = nn.init.kaiming_uniform_(torch.empty(RANK, 24), a=5**0.5)
    starts = {"default": (A, torch.zeros(OUT, RANK)), "ga": lora_ga(weight(), RANK, SCALE, G, LoraGAConfig())[:2]}
    for name, (A_RI, B_OR) in starts.items():
        step = B_OR @ (B_OR.mT @ G) + (G @ A_RI.mT) @ A_RI  # of W, to first order
        first[name] = float((step * G).sum() / (step.norm() * G.norm()))
    assert first["ga"] > first["default"]


def test_gathered_gradients_are_summed_over_steps():
    base, c = one_layer(), config()
    halves = [(rows()[i : i + 100], labels()[i : i + 100]) for i in (0, 100)]
    preprocess_loraga(base, c, lambda: [mse_loss(base(x), y).backward() for x, y in halves])
    torch.testing.assert_close(c.statistics["0"] / 2, gradient(), rtol=1e-4, atol=1e-6)


def test_model_is_left_as_it_was_even_after_an_error():
    base = nn.Sequential(one_layer()[0], nn.Linear(OUT, 3))
    base[0].weight.requires_grad_(False)
    kept = torch.ones_like(base[1].weight)
    base[1].weight.grad = kept
    bits = base[0].weight.detach().clone()

    def fail():
        assert base[0].weight.requires_grad
        assert not base[1].weight.requires_grad
        base(rows()).sum().backward()
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        preprocess_loraga(base, config(), fail)
    assert [p.requires_grad for p in base.parameters()] == [False, True, True]
    assert base[0].weight.grad is None
    assert base[1].weight.grad is kept
    assert torch.equal(base[0].weight, bits)
    assert not base[0].weight._post_accumulate_grad_hooks


def test_adapted_model_starts_at_the_base():
    base, c = one_layer(), config()
    want = base(rows()).detach()
    preprocess_loraga(base, c, lambda: mse_loss(base(rows()), labels()).backward())
    torch.testing.assert_close(get_peft_model(base, c)(rows()), want, atol=5e-5, rtol=1e-5)


def test_transposed_weights_give_gradients_in_canonical_layout():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    base, c = nn.Sequential(conv1d(OUT, 24)), config()
    preprocess_loraga(base, c, lambda: base(rows()).square().mean().backward())
    assert c.statistics["0"].shape == (OUT, 24)
    get_peft_model(base, c)


def test_gradients_are_read_back_from_their_file(tmp_path):
    base, first, second = one_layer(), config(), config()
    path = str(tmp_path / "g.safetensors")
    preprocess_loraga(base, first, lambda: mse_loss(base(rows()), labels()).backward(), cache_file=path)
    preprocess_loraga(base, second, lambda: pytest.fail("the file was there"), cache_file=path)
    assert torch.equal(first.statistics["0"], second.statistics["0"])


def test_a_target_without_gradient_is_named():
    with pytest.raises(ConfigError, match="0: 1 targets saw no gradient"):
        preprocess_loraga(one_layer(), config(), lambda: None)


def test_start_without_statistics_says_what_to_call():
    with pytest.raises(ConfigError, match="preprocess_loraga"):
        get_peft_model(one_layer(), config())


def test_rank_above_half_of_the_weights_is_refused():
    with pytest.raises(ConfigError, match="more singular directions") as caught:
        lora_ga(weight(), 13, SCALE, gradient(), LoraGAConfig())
    assert "at most 12" in str(caught.value)


def test_zero_gradient_is_refused():
    with pytest.raises(ConfigError, match="gradient is zero"):
        lora_ga(weight(), RANK, SCALE, torch.zeros(OUT, 24), LoraGAConfig())


@pytest.mark.parametrize("bad", [{"direction": "x"}, {"scale": "x"}, {"stable_gamma": 0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        LoraGAConfig(**bad)
