"""Names of the reference that have no counterpart: importing them is right, using them says what there is instead."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import afina
from afina.compat.elsewhere import INSTANCES, WHY, elsewhere
from afina.errors import ConfigError

from ..core.tiny import config, mlp


@pytest.mark.parametrize("name", sorted({*WHY, *INSTANCES}))
def test_use_is_refused_in_a_sentence(name: str) -> None:
    found = elsewhere(name)
    assert found is not None
    for use in (lambda: found(1, layer=2), lambda: list(found), lambda: found["a"], lambda: "a" in found,
                lambda: type("Own", (found,), {})):  # fmt: skip
        with pytest.raises(ConfigError, match=name) as caught:
            use()
        assert len(str(caught.value).splitlines()) <= 4
    assert not isinstance(nn.Linear(1, 1), found)


def instances(model: nn.Module, name: str) -> list[nn.Module]:
    kind = elsewhere(name)
    assert kind is not None
    return [m for m in model.modules() if isinstance(m, kind)]


def test_doras_magnitudes_are_found_as_scripts_look_for_them() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.conv, self.line = nn.Embedding(8, 4), nn.Conv2d(4, 4, 1), nn.Linear(4, 4)

    model = afina.get_peft_model(Net(), config(target_modules=["words", "conv", "line"], use_dora=True))
    for name, where in (("DoraLinearLayer", "line"), ("DoraEmbeddingLayer", "words"), ("DoraConv2dLayer", "conv")):
        layer = model.base_model.model.get_submodule(where)
        (found,) = instances(model, name)
        assert layer.lora_magnitude_vector["default"] is found
        assert found.weight.requires_grad
        assert found.weight.numel() == (8 if where == "words" else 4) or where == "words"
    assert not instances(model, "DoraConv1dLayer")
    assert not instances(afina.get_peft_model(mlp(), config()), "DoraLinearLayer")


def test_the_rank_controller_and_trained_tokens_are_instances() -> None:
    ranks = afina.get_peft_model(mlp(), afina.AdaLoraConfig(target_modules=["up"], total_step=10))
    assert len(instances(ranks, "RankAllocator")) == 1
    words = nn.Sequential(nn.Embedding(8, 4))
    tokens = afina.get_peft_model(words, afina.TrainableTokensConfig(target_modules=["0"], token_indices=[1]))
    assert len(instances(tokens, "TrainableTokensWrapper")) == 1
    assert not instances(afina.get_peft_model(mlp(), config()), "RankAllocator")
    assert torch.isfinite(tokens(torch.tensor([1]))).all()
