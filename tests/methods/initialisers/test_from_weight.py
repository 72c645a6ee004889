"""The starts that are computed from the weight alone: PiSSA, OLoRA, orthogonal, MiCA, and their table."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from afina import LoraConfig, get_peft_model
from afina.errors import ConfigError
from afina.methods.initialisers import STARTS, initialise, mica, olora, orthogonal, pissa

from .cases import IN, OUT, RANK, SCALE, best_approximation, one_layer, product, reference_start, relative, rows, weight


def test_pissa_product_is_the_best_low_rank_approximation():
    start = pissa(weight(), RANK, SCALE)
    assert start.subtract
    assert relative(product(start), best_approximation(weight(), RANK)) < 1e-5


def test_pissa_factors_are_of_equal_size():
    start = pissa(weight(), RANK, SCALE)
    torch.testing.assert_close(start.A_RI.norm(dim=1), start.B_OR.norm(dim=0))


def test_randomised_pissa_approaches_the_exact_one_with_iterations():
    exact = product(pissa(weight(), RANK, SCALE))
    torch.manual_seed(0)
    errors = [relative(product(pissa(weight(), RANK, SCALE, niter=n)), exact) for n in (0, 8, 200)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3  # the power iteration's own convergence on a spectrum without gaps


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_start_equals_the_reference(init):
    A, B, taken = reference_start(init)
    start = initialise(init, weight(), RANK, SCALE, config=LoraConfig(init_lora_weights=init))
    assert relative(product(start), SCALE * B @ A) < 1e-5
    assert relative(product(start), taken) < 1e-5
    assert relative(start.B_OR @ start.B_OR.mT, B @ B.mT) < 1e-5  # the factors too, up to signs


def test_olora_b_is_orthonormal_and_the_product_is_part_of_qr():
    start = olora(weight(), RANK)
    torch.testing.assert_close(start.B_OR.mT @ start.B_OR, torch.eye(RANK), atol=1e-5, rtol=0)
    # W's first r columns lie in the span of Q's first r, so the product gives them back.
    torch.testing.assert_close((start.B_OR @ start.A_RI)[:, :RANK], weight()[:, :RANK], atol=1e-5, rtol=0)


def test_orthogonal_product_is_zero_and_no_factor_is():
    start = orthogonal(weight(), RANK)
    assert (start.B_OR @ start.A_RI).abs().max() < 1e-7
    assert min(start.A_RI.norm(), start.B_OR.norm()) > 0.1
    assert not start.subtract


def test_orthogonal_has_the_size_of_the_reference():
    torch.manual_seed(0)
    ours = orthogonal(torch.empty(400, 400), 32)
    assert ours.A_RI.std().item() == pytest.approx(0.1 * 0.5**0.5, rel=0.03)
    A, B, taken = reference_start("orthogonal")
    assert A.std().item() == pytest.approx(0.1 * 0.5**0.5, rel=0.3)  # 96 numbers
    assert (B @ A).abs().max() < 1e-7
    assert not taken.any()


def test_orthogonal_refuses_an_odd_rank():
    with pytest.raises(ConfigError, match="halves"):
        orthogonal(weight(), 3)


def test_mica_b_is_the_minor_left_subspace_and_a_is_zero():
    start = mica(weight(), RANK)
    U, _, _ = torch.linalg.svd(weight(), full_matrices=False)
    torch.testing.assert_close((start.B_OR.mT @ U[:, -RANK:]).abs(), torch.eye(RANK), atol=1e-5, rtol=0)
    assert not start.A_RI.any()
    _, B, _ = reference_start("mica")
    assert relative(start.B_OR @ start.B_OR.mT, B @ B.mT) < 1e-5


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_2", "olora", "mica"])
def test_rank_above_the_weights_is_refused(init):
    with pytest.raises(ConfigError, match="more singular directions") as caught:
        initialise(init, weight(), IN + 1, 1.0, config=LoraConfig())
    assert f"at most {IN}" in str(caught.value)


@pytest.mark.parametrize("name", ["pisa", "pissa_niter", "pissa_niter_x", "pissa_niter_N", "olora_3", "PISSA"])
def test_unknown_start_names_the_nearest(name):
    with pytest.raises(ConfigError, match="unknown start") as caught:
        initialise(name, weight(), RANK, SCALE, config=LoraConfig())
    assert "did you mean" in str(caught.value) or name.isupper()


def test_drawn_starts_are_left_to_the_layer():
    for name in (True, False, "gaussian"):
        assert initialise(name, weight(), RANK, SCALE, config=LoraConfig()) is None


@pytest.mark.parametrize("init", sorted(set(STARTS) - {"pissa_niter_N"}))
def test_not_finite_weight_is_refused(init):
    broken = weight().clone()
    broken[0, 0] = float("nan")
    with pytest.raises(ConfigError, match="not finite"):
        initialise(init, broken, RANK, SCALE, config=LoraConfig())


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "orthogonal"])
def test_adapted_model_starts_at_the_base_and_leaves_its_bits(init):
    base = one_layer()
    bits = base[0].weight.detach().clone()
    want = base(rows())
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=8, target_modules=["0"], init_lora_weights=init))
    torch.testing.assert_close(model(rows()), want, atol=2e-5, rtol=1e-5)
    with model.disable_adapter():
        assert torch.equal(model(rows()), want)
    assert torch.equal(model.unload()[0].weight, bits)


def test_transposed_layers_are_started_in_their_canonical_layout():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    base = nn.Sequential(conv1d(OUT, IN))
    want = base(rows())
    model = get_peft_model(base, LoraConfig(r=RANK, target_modules=["0"], init_lora_weights="olora"))
    torch.testing.assert_close(model(rows()), want, atol=2e-5, rtol=1e-5)
