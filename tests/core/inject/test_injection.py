"""Injecting: names, all or nothing, what is frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import afina
from afina.core.hosts.host import hosts
from afina.errors import AfinaError, ConfigError, NameTakenError

from ..tiny import bits, config, inputs, mlp, same_bits, trained

LOOK_ALIKES = ["\u00e9", "\uff41", "\u0430", "\U0001f600"]
ODD = [
    *(
        "/abs",
        "a/b",
        "..",
        ".",
        "",
        " ",
        "a ",
        " a",
        "new\nline",
        "tab\t",
        "x" * 65,
        "x" * 300,
        "-x",
        "_x",
        "a.b",
        "a\\b",
    ),
    *("CON", "con", "nul", "COM1", "lpt9", "a\x00b", "a:b", "a*b", "~", "$HOME", "%00", *LOOK_ALIKES),
    *("keys", "forward", "train", "items", "values", "pop", "copy", "get", "add_module", None, 3, b"x", ("a",)),
]
PARAMETERS = ["lora_A", "lora_B", "weight", "bias", "base_layer", "adapters", "shared", "lora_magnitude_vector"]


@pytest.mark.parametrize("name", ODD, ids=lambda n: repr(n)[:20])
def test_odd_adapter_names_are_refused_and_write_nothing(name: Any, tmp_path: Path) -> None:
    base = mlp()
    with pytest.raises(NameTakenError) as caught:
        afina.get_peft_model(base, config(), adapter_name=name)
    assert len(str(caught.value).splitlines()) <= 4
    assert not list(hosts(base))
    model = trained()
    before = bits(model)
    with pytest.raises(NameTakenError):
        model.add_adapter(name, config())
    assert same_bits(bits(model), before)
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(NameTakenError):
        model.load_adapter(tmp_path / "a", name)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["default", "a", "A-1_b", "x" * 64, "0", "modules_to_save", *PARAMETERS])
def test_plain_names_work_even_when_they_are_parameters_names(name: str, tmp_path: Path) -> None:
    model = trained(bias="all", modules_to_save=["head"])
    out = model(inputs())
    named = afina.get_peft_model(mlp(), config(bias="all", modules_to_save=["head"]), adapter_name=name).eval()
    afina.set_peft_model_state_dict(named, afina.get_peft_model_state_dict(model), adapter_name=name)
    assert torch.equal(named(inputs()), out)
    named.save_pretrained(tmp_path)
    loaded = afina.PeftModel.from_pretrained(mlp(), tmp_path if name == "default" else tmp_path / name)
    assert torch.equal(loaded(inputs()), out)
    named.delete_adapter(name)
    assert same_bits(bits(named.get_base_model()), bits(mlp()))


def test_taken_name_is_refused() -> None:
    model = trained()
    with pytest.raises(NameTakenError, match="already"):
        model.add_adapter("default", config())


def test_error_at_the_last_layer_leaves_no_host_behind() -> None:
    base = mlp()
    base.add_module("strange", nn.LayerNorm(8))
    before = bits(base)
    with pytest.raises(AfinaError, match="strange"):
        afina.get_peft_model(base, config(target_modules=["up", "down", "strange"]))
    assert not list(hosts(base))
    assert same_bits(bits(base), before)
    assert all(p.requires_grad for p in base.parameters())


def test_failed_second_adapter_leaves_the_first_as_it_was() -> None:
    model = trained()
    out, grads = model(inputs()), [p.requires_grad for p in model.parameters()]
    for bad in (config(target_modules=["nope"]), config(target_modules=["layers"]), config(modules_to_save=["nope"])):
        with pytest.raises(AfinaError):
            model.add_adapter("second", bad)
    assert torch.equal(model(inputs()), out)
    assert [p.requires_grad for p in model.parameters()] == grads
    assert list(model.peft_config) == ["default"]
    model.add_adapter("second", config())


def test_base_is_frozen_and_only_the_adapter_trains() -> None:
    model = afina.get_peft_model(mlp(), config())
    assert all(("adapters" in n) == p.requires_grad for n, p in model.named_parameters())


def test_inference_mode_freezes_the_adapter() -> None:
    assert not any(p.requires_grad for p in afina.get_peft_model(mlp(), config(inference_mode=True)).parameters())


def test_wrapping_a_wrapped_model_is_refused() -> None:
    model = trained()
    with pytest.raises(ConfigError, match="already has adapters"):
        afina.get_peft_model(model, config())
    with pytest.raises(ConfigError, match="already has adapters"):
        afina.get_peft_model(model.get_base_model(), config())


def test_config_of_the_caller_is_not_changed() -> None:
    mine = config(modules_to_save=["head"])
    before = mine.to_dict()
    afina.get_peft_model(mlp(), mine)
    assert mine.to_dict() == before


def test_injection_without_a_wrapper_runs_and_trains() -> None:
    base = mlp()
    model = afina.inject_adapter_in_model(config(), base)
    assert model is base
    model(inputs()).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_low_cpu_mem_usage_makes_no_memory() -> None:
    model = afina.inject_adapter_in_model(config(), mlp(), low_cpu_mem_usage=True)
    assert all(p.is_meta == ("adapters" in n) for n, p in model.named_parameters())


def test_rank_is_checked_against_groups() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 1, groups=3)

    with pytest.raises(ConfigError, match="multiple of 3"):
        afina.get_peft_model(Grouped(), config(target_modules=["conv"], r=4))


@pytest.mark.parametrize("compiled_then", [False, True])
def test_tensors_name_the_modules_of_compiled_models_too(compiled_then: bool) -> None:
    def built(compiled: bool) -> Any:
        model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
        return torch.compile(model, backend="eager") if compiled else model

    chosen = afina.LoraConfig(target_modules=["1.0"])
    tensors = afina.get_peft_model_state_dict(afina.inject_adapter_in_model(chosen, built(compiled_then)))
    model = afina.inject_adapter_in_model(chosen, built(not compiled_then), state_dict=tensors)
    assert [n for n, _ in hosts(model)] == [f"{'' if compiled_then else '_orig_mod.'}1.0"]
