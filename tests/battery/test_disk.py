"""Files: every row of the table saved, loaded, and exchanged with the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

import afina
from afina.core.config import PeftConfig
from afina.core.hosts.tuner import shared_modules

from .harness import (
    REFERENCE,
    adapted,
    assert_same_bits,
    bits,
    cases,
    config,
    distance,
    nudge,
    oracle_config,
    quietly,
    run,
)
from .kinds import Kind
from .table import Row

ORACLE_TOLERANCE = 1e-5


@cases("config")
def test_config_survives_a_round_trip_through_its_file(row: Row, kind: Kind, tmp_path: Path) -> None:
    before = config(row, kind)
    before.save_pretrained(tmp_path)
    after = PeftConfig.from_pretrained(tmp_path)
    assert type(after) is type(before)
    assert {**after.to_dict(), "peft_version": None} == before.to_dict()
    assert not after.extra


@cases("save")
def test_loaded_adapter_has_the_saved_bits(row: Row, kind: Kind, tmp_path: Path) -> None:
    model = adapted(row, kind)
    model.save_pretrained(tmp_path)
    loaded = afina.PeftModel.from_pretrained(kind.build(), tmp_path)
    assert torch.equal(run(loaded, kind), run(model, kind))
    assert_same_bits(bits(loaded), bits(model))
    assert not any(p.requires_grad for p in loaded.parameters())
    again = afina.PeftModel.from_pretrained(kind.build(), tmp_path, is_trainable=True)
    assert again.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()


@cases("save")
def test_second_adapter_goes_to_a_subfolder_and_comes_back(row: Row, kind: Kind, tmp_path: Path) -> None:
    model = adapted(row, kind)
    model.add_adapter("other", config(row, kind))
    model.set_adapter("other")
    nudge(model, seed=9)
    out = run(model, kind)
    model.save_pretrained(tmp_path)
    loaded = afina.PeftModel.from_pretrained(kind.build(), tmp_path)
    loaded.load_adapter(tmp_path / "other", "renamed")
    assert loaded.active_adapters == ["default"]
    loaded.set_adapter("renamed")
    assert torch.equal(run(loaded, kind), out)


@cases("low_memory")
def test_low_cpu_mem_usage_gives_the_same_bits(row: Row, kind: Kind, tmp_path: Path) -> None:
    model = adapted(row, kind)
    model.save_pretrained(tmp_path)
    loaded = afina.PeftModel.from_pretrained(kind.build(), tmp_path, low_cpu_mem_usage=True)
    assert not any(p.is_meta for p in loaded.parameters())
    assert torch.equal(run(loaded, kind), run(model, kind))


@cases("save")
def test_file_holds_one_tensor_for_each_trained_or_frozen_part(row: Row, kind: Kind, tmp_path: Path) -> None:
    model = adapted(row, kind)
    model.save_pretrained(tmp_path)
    held = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(t.numel() for t in held.values()) >= row.count(kind)
    shared = {f"base_model.{n}" for n in shared_modules(model.base_model).get("default", nn.Module()).state_dict()}
    assert all(k.startswith("base_model.model.") or k in shared for k in held)
    assert not any("default" in k for k in held)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == str(config(row, kind).peft_type)


def _reference_output(model: Any, kind: Kind) -> torch.Tensor:
    if kind.oracle_must_merge:
        model.merge_adapter()
    out = run(model.eval(), kind)
    if kind.oracle_must_merge:
        model.unmerge_adapter()
    return out


def _is_unmergeable(row: Row, kind: Kind) -> bool:
    return bool(kind.oracle_must_merge) and bool(row.gap("merge", kind))


@cases("oracle")
def test_reference_reads_what_is_written_here(row: Row, kind: Kind, tmp_path: Path) -> None:
    assert not _is_unmergeable(row, kind)
    model = adapted(row, kind)
    model.save_pretrained(tmp_path)
    with quietly():
        theirs = REFERENCE.PeftModel.from_pretrained(kind.build(), tmp_path, is_trainable=True)
        assert distance(_reference_output(theirs, kind), run(model, kind)) < ORACLE_TOLERANCE
        state = REFERENCE.get_peft_model_state_dict(theirs)
    assert sorted(state) == sorted(load_file(tmp_path / "adapter_model.safetensors"))
    assert theirs.get_nb_trainable_parameters()[0] == model.get_nb_trainable_parameters()[0]


@cases("oracle")
def test_what_the_reference_writes_is_read_here(row: Row, kind: Kind, tmp_path: Path) -> None:
    with quietly():
        theirs = REFERENCE.get_peft_model(kind.build(), oracle_config(row, kind))
        nudge(theirs, seed=3)
        expected = _reference_output(theirs, kind)
        theirs.save_pretrained(tmp_path)
    loaded = afina.PeftModel.from_pretrained(kind.build(), tmp_path)
    assert distance(run(loaded, kind), expected) < ORACLE_TOLERANCE
    mine = afina.get_peft_model_state_dict(loaded)
    assert {k: tuple(t.shape) for k, t in mine.items()} == {
        k: tuple(t.shape) for k, t in load_file(tmp_path / "adapter_model.safetensors").items()
    }
