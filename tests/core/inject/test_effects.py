"""Entries of a config that match nothing are told, with the nearest names, once for a config."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import afina
from afina.errors import AfinaWarning

from ..tiny import config, gpt2, llama, load, mlp, trained

IDLE: list[tuple[dict[str, Any], str]] = [
    ({"target_modules": ["up", "dwn"]}, r"target_modules: 'dwn' \(nearest: down\)"),
    ({"target_modules": ["layers.0.up", "layers.7.up"]}, r"target_modules: 'layers.7.up' \(nearest: layers"),
    ({"exclude_modules": ["layers.2.up", "layers.9.up"]}, "exclude_modules: 'layers.9.up'"),
    ({"exclude_modules": ["head"]}, "exclude_modules: 'head'"),
    ({"exclude_modules": "hea."}, "exclude_modules: 'hea.'"),
    ({"layers_to_transform": [0, 7]}, "layers_to_transform: '7'"),
    ({"layers_to_transform": [0], "layers_pattern": ["layers", "blocks"]}, "layers_pattern: 'blocks'"),
    ({"rank_pattern": {"up": 3, "upp": 4}}, r"rank_pattern: 'upp' \(nearest: up\)"),
    ({"rank_pattern": {"up|down": 3, "up": 4}}, "rank_pattern: 'up'"),
    ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern: 'q_proj'"),
    ({"modules_to_save": ["head", "score"]}, "modules_to_save: 'score'"),
    ({"target_modules": [], "target_parameters": ["up.weight", "up.wait"]}, "target_parameters: 'up.wait'"),
]


@pytest.mark.parametrize(("fields", "told"), IDLE)
def test_entry_without_effect_is_told(fields: dict[str, Any], told: str) -> None:
    with pytest.warns(AfinaWarning, match=told) as caught:
        trained(**fields)
    assert len([w for w in caught if "without effect" in str(w.message)]) == 1


def test_one_warning_names_all() -> None:
    with pytest.warns(AfinaWarning) as caught:
        trained(target_modules=["up", "q"], rank_pattern={"k": 3}, alpha_pattern={"v": 2}, exclude_modules=["o"])
    [text] = [str(w.message) for w in caught]
    assert all(part in text for part in ("target_modules: 'q'", "rank_pattern: 'k'", "alpha_pattern: 'v'", "'o'"))


def test_entries_of_a_file_are_told_when_it_is_loaded(tmp_path: Path) -> None:
    with pytest.warns(AfinaWarning):
        trained(rank_pattern={"k": 3}).save_pretrained(tmp_path)
    with pytest.warns(AfinaWarning, match="rank_pattern: 'k'"):
        load(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": r".*(up|down)", "exclude_modules": ["layers.0.up"]},
        {"rank_pattern": {"up": 3, r".*\.1\.down": 4}, "alpha_pattern": {"layers.0.up": 2}},
        {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
        {"modules_to_save": ["head"]},
        {"target_modules": [], "target_parameters": ["up.weight"], "rank_pattern": {r".*\.weight": 3}},
    ],
)
def test_what_has_an_effect_is_not_told(fields: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", AfinaWarning)
        afina.get_peft_model(mlp(), config(**fields))


def test_patterns_match_the_names_of_parameters_too() -> None:
    model = trained(target_modules=[], target_parameters=["up.weight", "down.weight"],
                    rank_pattern={r".*\.up\.weight": 5}, alpha_pattern={"layers.0.down": 7})  # fmt: skip
    ranks = {p.shape[0] for n, p in model.named_parameters() if "lora_A" in n and ".up." in n}
    assert ranks == {5}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (afina.LoraConfig(fan_in_fan_out=True, target_modules=["q_proj"]), "fan_in_fan_out"),
        (afina.LoraConfig(ensure_weight_tying=True, target_modules=["embed_tokens"]), "ensure_weight_tying"),
        (afina.LoHaConfig(use_effective_conv2d=True, target_modules=["q_proj"]), "use_effective_conv2d"),
        (afina.TinyLoraConfig(init_v_bound=0.5, target_modules=["q_proj"]), "init_v_bound"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_switch_that_switches_nothing_is_told(config: Any, told: str) -> None:
    with pytest.warns(AfinaWarning, match=told):
        afina.get_peft_model(llama(), config)


def test_a_tie_of_which_nothing_is_adapted_is_told() -> None:
    with pytest.warns(AfinaWarning, match="no tied embedding is adapted"):
        afina.get_peft_model(llama(tied=True), afina.LoraConfig(ensure_weight_tying=True, target_modules=["q_proj"]))


def test_switches_that_count_are_not_told() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", AfinaWarning)
        afina.get_peft_model(gpt2(), afina.LoraConfig(fan_in_fan_out=True, target_modules=["c_attn"]))
        tied = {"ensure_weight_tying": True, "target_modules": ["embed_tokens"]}
        afina.get_peft_model(llama(tied=True), afina.LoraConfig(**tied))
        tokens = {"ensure_weight_tying": True, "target_modules": ["q_proj"], "trainable_token_indices": [1]}
        afina.get_peft_model(llama(tied=True), afina.LoraConfig(**tokens))
        afina.get_peft_model(llama(), afina.TinyLoraConfig(init_v_bound=0.5, init_weights=False))
