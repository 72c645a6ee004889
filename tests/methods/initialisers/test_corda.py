"""CorDA: directions of W weighted by the covariance of the inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from afina import LoraConfig, get_peft_model
from afina.errors import ConfigError
from afina.methods.initialisers import corda
from afina.methods.initialisers.corda import FIRST_DAMPING, CordaConfig, preprocess_corda

from .cases import IN, RANK, SCALE, one_layer, product, reference_start, relative, rows, weight


def config(**options) -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=8, target_modules=["0"], init_lora_weights="corda", corda_config=options)


def dense(method: str) -> torch.Tensor:
    """The formula with an explicit inverse, in double precision."""
    C = rows().double().mT @ rows().double()
    C = C + FIRST_DAMPING * C.diagonal().mean() * torch.eye(IN)
    U, S, Vh = torch.linalg.svd(weight().double() @ C, full_matrices=False)
    keep = slice(0, RANK) if method == "ipm" else slice(-RANK, None)
    return ((U[:, keep] * S[keep]) @ Vh[keep] @ torch.linalg.inv(C)).float()


@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_product_equals_a_direct_dense_computation(method):
    start = corda(weight(), RANK, SCALE, rows().mT @ rows(), method=method)
    assert start.subtract
    assert relative(product(start), dense(method)) < 1e-4


@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_product_equals_the_reference_on_one_batch(method):
    peft_corda = pytest.importorskip("peft.tuners.lora.corda")
    from peft.tuners.lora.config import CordaConfig as ReferenceConfig

    def prepare(model, settings):
        peft_corda.preprocess_corda(model, settings, run_model=lambda: model(rows()))

    A, B, taken = reference_start("corda", prepare, corda_config=ReferenceConfig(corda_method=method))
    start = corda(weight(), RANK, SCALE, rows().mT @ rows(), method=method)
    assert relative(product(start), SCALE * B @ A) < 1e-4  # float32 through an SVD and an inverse
    assert relative(product(start), taken) < 1e-4


def test_all_directions_together_give_the_weight_back():
    start = corda(weight(), IN, SCALE, rows().mT @ rows())
    assert relative(product(start, SCALE), weight()) < 1e-4


def test_the_scale_of_the_data_does_not_matter():
    small, large = (corda(weight(), RANK, SCALE, c * rows().mT @ rows()) for c in (1e-6, 1e6))
    torch.testing.assert_close(small.A_RI.abs(), large.A_RI.abs(), rtol=1e-3, atol=1e-4)


def test_gathered_covariance_is_that_of_all_batches():
    base, c = one_layer(), config()
    preprocess_corda(base, c, run_model=lambda: [base(part) for part in rows().view(4, 5, 10, IN)])
    want = rows().mT @ rows()
    torch.testing.assert_close(c.statistics["0"], want / want.diagonal().mean(), rtol=1e-4, atol=1e-5)


def test_adapted_model_starts_at_the_base_and_saves_no_statistics(tmp_path):
    base, c = one_layer(), config(corda_method="kpm")
    want = base(rows())
    preprocess_corda(base, c, run_model=lambda: base(rows()))
    model = get_peft_model(base, c)
    torch.testing.assert_close(model(rows()), want, atol=2e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    assert "statistics" not in (tmp_path / "adapter_config.json").read_text()


def test_model_is_left_as_it_was_even_after_an_error():
    base = nn.Sequential(nn.Linear(IN, 8), nn.Dropout())
    base[1].eval()

    def fail():
        assert not base[0].training
        base(rows())
        raise RuntimeError("data ran out")

    with pytest.raises(RuntimeError, match="data ran out"):
        preprocess_corda(base, config(), run_model=fail)
    assert not base[0]._forward_pre_hooks
    assert [m.training for m in base] == [True, False]


def test_covariances_are_read_back_from_their_file(tmp_path):
    path = str(tmp_path / "c.safetensors")
    first, second, base = config(covariance_file=path), config(covariance_file=path), one_layer()
    preprocess_corda(base, first, run_model=lambda: base(rows()))
    preprocess_corda(base, second)
    assert torch.equal(first.statistics["0"], second.statistics["0"])
    other = nn.Sequential(nn.Linear(IN + 1, 8))
    with pytest.raises(ConfigError, match="another model"):
        preprocess_corda(other, config(covariance_file=path))


def test_a_target_without_data_is_named():
    with pytest.raises(ConfigError, match=r"0: 1 targets saw no data"):
        preprocess_corda(one_layer(), config(), run_model=lambda: None)


def test_start_without_statistics_says_what_to_call():
    with pytest.raises(ConfigError, match="preprocess_corda"):
        get_peft_model(one_layer(), config())


def test_covariance_of_nothing_but_zeros_is_refused():
    with pytest.raises(ConfigError, match="all zero"):
        corda(weight(), RANK, SCALE, torch.zeros(IN, IN))


def test_matrix_that_no_damping_repairs_is_refused():
    C = torch.eye(IN)
    C[0, 0] = -5.0
    with pytest.raises(ConfigError, match="singular even with damping"):
        corda(weight(), RANK, SCALE, C)


def test_singular_covariance_is_damped():
    few = rows(3)
    start = corda(weight(), RANK, SCALE, few.mT @ few)
    assert torch.isfinite(product(start)).all()


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="unknown mode"):
        CordaConfig(corda_method="abc")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="covariance_file"):
        preprocess_corda(one_layer(), config(cache_file="x.pt"), run_model=lambda: None)
