"""What identifies a base."""

from __future__ import annotations

import pytest
import torch

from afina.core.disk.fingerprint import compare, fingerprint
from afina.errors import CheckpointError

from ..tiny import config, llama, mlp, trained


def of(model: object) -> dict[str, object]:
    """The fingerprint of an adapted model's base."""
    return fingerprint(model.get_base_model())  # type: ignore[attr-defined]


def test_same_base_has_the_same_fingerprint_whatever_the_adapter() -> None:
    assert of(trained(seed=1)) == of(trained(seed=2, r=4))


def test_merging_disabling_and_other_adapters_do_not_change_it() -> None:
    model = trained()
    plain = of(model)
    model.add_adapter("b", config(target_modules=["up"]))
    assert of(model) == plain
    model.merge_adapter()
    assert of(model) == plain
    with model.disable_adapter():
        assert of(model) == plain


def test_other_weights_change_it() -> None:
    assert of(trained(mlp(seed=1))) != of(trained())
    base = mlp()
    with torch.no_grad():
        base.layers[1]["down"].weight[0, 0] += 1e-3
    assert of(trained(base)) != of(trained())


def test_another_storage_is_not_compared() -> None:
    compare(of(trained()), trained(mlp().bfloat16()).get_base_model(), "file")


def test_what_was_not_recorded_is_not_compared() -> None:
    compare({}, trained().get_base_model(), "file")


@pytest.mark.parametrize(("key", "value"), [("model_type", "gpt2"), ("hidden_size", 4096), ("num_hidden_layers", 80)])
def test_other_architecture_or_size_is_named(key: str, value: object) -> None:
    import afina

    model = afina.get_peft_model(llama(), afina.LoraConfig())
    with pytest.raises(CheckpointError, match=key) as caught:
        compare({**of(model), key: value}, model.get_base_model(), "file")
    assert len(str(caught.value).splitlines()) <= 4
