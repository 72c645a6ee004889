"""Which layers IA³ scales at their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch

import afina

from ...core.tiny import bert, gpt2, llama, mlp


def shapes(package: Any, model: Any) -> dict[str, tuple[int, ...]]:
    return {k: tuple(t.shape) for k, t in package.get_peft_model_state_dict(model).items()}


@pytest.mark.parametrize(("base", "targets"), [
    (llama, r".*\.(k_proj|down_proj)"), (llama, ["model.layers.0.mlp.down_proj", "k_proj"]),
    (gpt2, ["c_attn", "c_proj"]), (gpt2, r".*c_proj"), (bert, ["dense"]),
])  # fmt: skip
def test_the_architecture_tells_it_as_in_the_reference(base: Callable[[], Any], targets: Any) -> None:
    ours = afina.get_peft_model(base(), afina.IA3Config(target_modules=targets))
    theirs = peft.get_peft_model(base(), peft.IA3Config(target_modules=targets))
    assert shapes(afina, ours) == shapes(peft, theirs)
    assert any(shape[0] == 1 for shape in shapes(afina, ours).values())


def test_layers_that_a_state_dict_names_are_scaled_as_it_says() -> None:
    tensors = afina.get_peft_model_state_dict(afina.inject_adapter_in_model(afina.IA3Config(), llama()))
    model = afina.inject_adapter_in_model(afina.IA3Config(), llama(), state_dict=tensors)
    assert shapes(afina, model) == {k: tuple(t.shape) for k, t in tensors.items()}


def test_names_of_other_architectures_help_where_none_is_known() -> None:
    model = torch.nn.ModuleDict({"down_proj": mlp().layers[0]["up"], "other": mlp().layers[0]["up"]})
    made = afina.get_peft_model(model, afina.IA3Config(target_modules=["down_proj", "other"]))
    found = shapes(afina, made)
    assert sorted(shape[0] == 1 for shape in found.values()) == [False, True]
