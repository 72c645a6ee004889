"""What an adapter expects of a file, and how that is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import afina
from afina.core.disk.checkpoint import get_peft_model_state_dict
from afina.core.disk.load_plan import LoadPlan
from afina.core.disk.names import own_key
from afina.errors import CheckpointError

from ..tiny import bits, config, llama, mlp, nudge, same_bits, trained


def held(model: Any) -> dict[str, torch.Tensor]:
    """What a file of the adapter holds."""
    return {own_key(k): t.detach().clone() for k, t in get_peft_model_state_dict(model).items()}


def plan(model: Any, tensors: dict[str, torch.Tensor], whole: tuple[str, ...] = ()) -> LoadPlan:
    return LoadPlan(model, "default", {k: tuple(t.shape) for k, t in tensors.items()}, whole)


def refused(found: LoadPlan) -> str:
    with pytest.raises(CheckpointError) as caught:
        found.refuse_problems("the-file")
    text = str(caught.value)
    assert "the-file" in text
    assert len(text.splitlines()) <= 4
    return text


@pytest.fixture
def model() -> Any:
    return trained(bias="all", modules_to_save=["head"])


def test_file_that_fits_is_taken_over_to_the_bit(model: Any) -> None:
    tensors, before = held(model), bits(model)
    nudge(model, seed=7)
    assert not same_bits(bits(model), before)
    found = plan(model, tensors)
    found.refuse_problems("the-file")
    assert (found.missing, found.unexpected, found.misshapen, found.of_vocabulary) == ([], [], [], [])
    found.apply(tensors)
    assert same_bits(bits(model), before)


def test_tensors_that_are_missing_keep_their_values(model: Any) -> None:
    tensors, before = held(model), bits(model)
    kept = "layers.0.up.lora_A.weight"
    del tensors[kept]
    tensors = {k: t + 1 for k, t in tensors.items()}
    tensors["layers.0.down.lora_A.weight"] = torch.zeros(3, 3)
    found = plan(model, tensors)
    assert (found.missing, found.misshapen) == ([kept], ["layers.0.down.lora_A.weight"])
    found.apply(tensors)
    now = bits(model)
    same = {n for n in now if torch.equal(now[n], before[n])}
    trained = {n for n in now if ".default" in n or ".biases." in n}
    assert same & trained == {
        f"base_model.model.layers.0.{part}.adapters.default.lora_A" for part in ("up", "down")
    }  # fmt: skip


def test_misshapen_tensors_are_told_with_both_shapes(model: Any) -> None:
    tensors = held(model)
    tensors["layers.0.up.lora_A.weight"] = torch.zeros(5, 7)
    text = refused(plan(model, tensors))
    assert "1 tensors have another shape, e.g. layers.0.up.lora_A.weight" in text
    assert "(5, 7)" in text
    assert "(2, 8) by this model" in text


def test_whole_numbers_are_refused_where_others_are_expected(model: Any) -> None:
    tensors = held(model)
    names = tuple(tensors)[:7]
    text = refused(plan(model, tensors, (*names, "unknown")))
    assert "7 tensors are no floating-point numbers" in text
    assert ", ".join(names[:5]) + " and 2 more" in text
    assert names[5] not in text
    assert "more" not in refused(plan(model, tensors, names[:5]))


def test_missing_and_unexpected_tensors_are_counted_and_the_nearest_name_is_told(model: Any) -> None:
    tensors = held(model)
    count = len(tensors)
    tensors["layers.0.up.lora_a.weight"] = tensors.pop("layers.0.up.lora_A.weight")
    tensors["zzz"] = torch.zeros(1)
    text = refused(plan(model, tensors))
    assert f"1 of {count} tensors are missing, 2 unexpected" in text
    assert "unexpected: layers.0.up.lora_a.weight, zzz" in text
    assert "missing: layers.0.up.lora_A.weight" in text
    assert "was 'layers.0.up.lora_a.weight' meant to be 'layers.0.up.lora_A.weight'?" in text


def test_lack_of_all_unexpected_tensors_is_told_as_none(model: Any) -> None:
    tensors = held(model)
    for key in list(tensors)[:2]:
        del tensors[key]
    text = refused(plan(model, tensors))
    assert "unexpected: none" in text
    assert "another base?" in text


def test_tensors_of_the_frozen_base_are_called_so(model: Any) -> None:
    tensors = {**held(model), "layers.1.up.base_layer.weight": torch.zeros(16, 8)}
    text = refused(plan(model, tensors))
    assert "frozen base" in text
    assert "layers.1.up.base_layer.weight" in text
    assert "zzz" in refused(plan(model, {**held(model), "zzz": torch.zeros(1)}))


@pytest.mark.parametrize("part", ["original_module", "modules_to_save"])
def test_second_copies_that_the_reference_writes_are_left_unread(part: str, model: Any) -> None:
    found = plan(model, {**held(model), f"head.{part}.bias": torch.zeros(4)})
    found.refuse_problems("the-file")
    assert plan(trained(), {**held(trained()), f"head.{part}.bias": torch.zeros(4)}).unexpected


def test_embeddings_are_neither_expected_nor_unexpected() -> None:
    model = afina.get_peft_model(llama(), afina.LoraConfig(task_type="CAUSAL_LM"))
    table = torch.zeros(32, 16)
    found = plan(model, {**held(model), "lm_head.weight": table})
    assert (found.of_vocabulary, found.unexpected) == (["lm_head.weight"], [])
    assert plan(model, {**held(model), "lm_head.weight": table[:, :3]}).misshapen == ["lm_head.weight"]
    assert plan(model, {**held(model), "lm_head.weight": table}, ("lm_head.weight",)).whole == ["lm_head.weight"]
    tuned = afina.get_peft_model(llama(), afina.LoraConfig(modules_to_save=["lm_head"], target_modules=["q_proj"]))
    assert plan(tuned, held(tuned)).of_vocabulary == []


def test_unknown_adapter_is_named() -> None:
    with pytest.raises(CheckpointError, match="nope"):
        LoadPlan(trained(), "nope", {})


def test_trained_module_without_memory_takes_the_files_tensors_in_their_place() -> None:
    made = trained(modules_to_save=["head"])
    tensors = held(made)
    empty = afina.get_peft_model(mlp(), config(modules_to_save=["head"]), low_cpu_mem_usage=True)
    assert any(p.is_meta for p in empty.parameters())
    plan(empty, tensors).apply(tensors)
    assert not any(p.is_meta for p in empty.parameters())
    assert same_bits(held(empty), tensors)


def test_adapters_follow_their_layers_to_where_those_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    model, moved = trained(modules_to_save=["head"]), []
    monkeypatch.setattr("afina.core.hosts.adapter.Adapter.to", lambda self, device: moved.append(device.type))
    found = plan(model, held(model))
    found.apply(held(model))
    assert moved == ["cpu"] * 7
    LoadPlan(model.to("meta"), "default", {}).apply({})
    assert moved == ["cpu"] * 7


def test_adapter_is_told_what_the_file_holds_below_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model, told = trained(), []
    monkeypatch.setattr("afina.core.hosts.adapter.Adapter.disk_shapes", lambda self, found: told.append(found) or found)
    tensors = held(model)
    plan(model, {**tensors, "layers.0.upper.x": torch.zeros(1), "stray": torch.zeros(1)})
    assert told == [{"lora_A.weight": (2, i), "lora_B.weight": (o, 2)} for i, o in [(8, 16), (16, 8)] * 3]
