"""Which depth every parameter has, written out for four architectures, and what follows from it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import afina
from afina.errors import ConfigError
from afina.optimizers import layerwise_parameter_groups

from .core import tiny

LR, DECAY = 1.0, 0.5
# First match wins; in order of the definition. Every model has two blocks (T5: two and two).
LLAMA = [(r"lm_head|model\.norm", 3), (r"layers\.0\.", 1), (r"layers\.1\.", 2), (r"embed_tokens", 0)]
BERT = [(r"classifier|pooler", 3), (r"layer\.0\.", 1), (r"layer\.1\.", 2), (r"embeddings", 0)]
GPT2 = [(r"ln_f", 3), (r"\.h\.0\.", 1), (r"\.h\.1\.", 2), (r"wte|wpe", 0)]
T5 = [
    (r"encoder\.block\.0\.", 1), (r"encoder\.block\.1\.|encoder\.final_layer_norm", 2), (r"decoder\.block\.0\.", 3),
    (r"decoder\.block\.1\.", 4), (r"decoder\.final_layer_norm|lm_head", 5), (r"shared", 0),
]  # fmt: skip
MODELS: dict[str, tuple[Any, list[tuple[str, int]], int]] = {
    "llama": (tiny.llama, LLAMA, 3),
    "bert": (tiny.bert, BERT, 3),
    "gpt2": (tiny.gpt2, GPT2, 3),
    "t5": (tiny.t5, T5, 5),
}


def depths(model: nn.Module, decay: float = DECAY) -> dict[str, int]:
    """Name -> depth, from the groups."""
    names = {id(p): n for n, p in model.named_parameters()}
    groups = layerwise_parameter_groups(model, LR, decay)
    found = {names[id(p)]: g["depth"] for g in groups for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in groups), "a parameter is in two groups"
    return found


def expected(name: str, rules: list[tuple[str, int]]) -> int:
    return next(depth for pattern, depth in rules if re.search(pattern, name))


@pytest.mark.parametrize("kind", MODELS)
def test_every_parameter_has_the_depth_of_its_layer(kind: str) -> None:
    build, rules, _ = MODELS[kind]
    model = build().requires_grad_(True)
    found = depths(model)
    assert set(found) == {n for n, _ in model.named_parameters()}
    assert found == {n: expected(n, rules) for n in found}
    assert set(found.values()) == {depth for _, depth in rules}


@pytest.mark.parametrize("kind", MODELS)
def test_rates_fall_by_the_factor_from_head_to_embeddings(kind: str) -> None:
    build, _, top = MODELS[kind]
    groups = layerwise_parameter_groups(build().requires_grad_(True), LR, DECAY)
    assert all(g["lr"] == DECAY ** (top - g["depth"]) for g in groups)
    assert [g["lr"] for g in groups] == sorted((g["lr"] for g in groups), reverse=True)
    assert groups[0]["lr"] == LR


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("config", ["LoraConfig", "BitFitConfig", "LNTuningConfig", "LastLayersConfig"])
def test_adapters_have_the_depth_of_the_layer_that_they_sit_on(kind: str, config: str) -> None:
    build, rules, _ = MODELS[kind]
    if (config, kind) in {("BitFitConfig", "llama"), ("BitFitConfig", "t5")}:
        pytest.skip("the model has no biases")
    options = {"target_modules": "all-linear"} if config == "LoraConfig" else {}
    model = afina.get_peft_model(build(), getattr(afina, config)(**options))
    found = depths(model)
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert found == {n: expected(n, rules) for n in found}
    assert len(set(found.values()) - {0}) >= 2


def test_trained_head_learns_at_the_full_rate() -> None:
    model = afina.get_peft_model(tiny.bert(), afina.LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    assert {d for n, d in depths(model).items() if "classifier" in n} == {3}


def test_head_that_shares_the_embeddings_weight_learns_as_they_do() -> None:
    model = tiny.llama(tied=True).requires_grad_(True)
    assert depths(model)["model.embed_tokens.weight"] == 0


@pytest.mark.parametrize("config", ["PromptTuningConfig", "PrefixTuningConfig", "VBLoRAConfig"])
def test_parameters_of_no_layer_learn_at_the_full_rate(config: str) -> None:
    if config == "VBLoRAConfig":
        own = afina.VBLoRAConfig(target_modules=["q_proj"], num_vectors=8, vector_length=8, topk=2)
    else:
        own = getattr(afina, config)(num_virtual_tokens=3, task_type="CAUSAL_LM")
    model = afina.get_peft_model(tiny.llama(), own)
    outside = {n: d for n, d in depths(model).items() if ".layers." not in n}
    assert outside
    assert set(outside.values()) == {3}


def test_sequence_of_unlike_layers_counts_where_there_is_no_stack_of_equal_ones() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2))
    assert depths(model) == {"0.weight": 1, "0.bias": 1, "3.weight": 2, "3.bias": 2}


def test_only_matrices_are_decayed_and_frozen_parameters_are_left_out() -> None:
    model = tiny.mlp().requires_grad_(True)
    model.layers[0].requires_grad_(False)
    groups = layerwise_parameter_groups(model, LR, DECAY, weight_decay=0.1)
    assert all(g["weight_decay"] == (0.1 if p.dim() > 1 else 0.0) for g in groups for p in g["params"])
    assert {g["depth"] for g in groups} == {2, 3, 4}


def test_decay_of_one_is_plain_training_bit_for_bit() -> None:
    def trained(groups: Any) -> torch.Tensor:
        model = tiny.mlp().requires_grad_(True)
        optimizer = torch.optim.AdamW(groups(model), lr=1e-2, weight_decay=0.0)
        for _ in range(3):
            optimizer.zero_grad()
            model(tiny.inputs()).square().mean().backward()
            optimizer.step()
        return model(tiny.inputs())

    assert torch.equal(trained(lambda m: layerwise_parameter_groups(m, 1e-2, 1.0)), trained(lambda m: m.parameters()))


def test_lower_layers_move_less() -> None:
    model = tiny.mlp().requires_grad_(True)
    before = tiny.bits(model)
    optimizer = torch.optim.SGD(layerwise_parameter_groups(model, 1e-2, 1e-3))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {n: (before[n] - p).abs().max().item() for n, p in model.named_parameters()}
    assert moved["head.weight"] > 100 * moved["layers.2.up.weight"] > 10**4 * moved["layers.1.up.weight"]


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.1, float("nan")])
def test_factor_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match="decay"):
        layerwise_parameter_groups(tiny.mlp().requires_grad_(True), LR, decay)


def test_model_without_a_stack_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="Linear: the model has no stack"):
        layerwise_parameter_groups(nn.Linear(2, 2), LR, DECAY)


def test_nothing_trainable_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing is trainable"):
        layerwise_parameter_groups(tiny.mlp().requires_grad_(False), LR, DECAY)
