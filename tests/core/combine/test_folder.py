"""Many adapters from one folder: each whole or not at all."""

from __future__ import annotations

import pytest

import afina
from afina.core.hosts.host import hosts
from afina.core.hosts.walk import outside_adapters
from afina.errors import CheckpointError, NameTakenError

from .. import tiny


@pytest.fixture
def folder(tmp_path):
    for seed in range(5):
        tiny.trained(seed=seed, r=1 + seed).save_pretrained(tmp_path / f"a{seed}")
    return tmp_path


@pytest.fixture
def model():
    return tiny.trained(seed=9)


def test_every_adapter_answers_as_when_loaded_alone(model, folder):
    want = {f"a{n}": tiny.load(folder / f"a{n}")(tiny.inputs()) for n in range(5)}
    assert afina.load_adapters(model, folder) == list(want)
    for name, output in want.items():
        model.set_adapter(name)
        assert model(tiny.inputs()).equal(output)


def test_loading_changes_neither_what_is_active_nor_what_trains(model, folder):
    before = {n for n, p in model.named_parameters() if p.requires_grad}
    want = model(tiny.inputs())
    afina.load_adapters(model, folder)
    assert model.active_adapters == ["default"]
    assert {n for n, p in model.named_parameters() if p.requires_grad} == before
    assert model(tiny.inputs()).equal(want)


def test_progress_is_told(model, folder):
    told = []
    afina.load_adapters(model, folder, progress=lambda done, total: told.append((done, total)))
    assert told == [(n, 5) for n in range(1, 6)]


def truncate(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def test_faulty_adapter_leaves_nothing_of_itself_and_those_before_stay(model, folder):
    truncate(folder / "a2")
    with pytest.raises(CheckpointError, match="a2"):
        afina.load_adapters(model, folder)
    assert list(model.peft_config) == ["default", "a0", "a1"]
    assert all(h.names() == ["default", "a0", "a1"] for _, h in hosts(model))


def test_faulty_adapter_is_left_out_with_its_reason_when_asked_for(model, folder):
    truncate(folder / "a2")
    with pytest.warns(afina.errors.AfinaWarning, match="'a2' is left out"):
        assert afina.load_adapters(model, folder, skip_faulty=True) == ["a0", "a1", "a3", "a4"]


def test_taken_name_is_refused(model, folder):
    afina.load_adapters(model, folder)
    with pytest.raises(NameTakenError):
        afina.load_adapters(model, folder)


def test_folder_without_adapters_is_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match="no adapters"):
        afina.load_adapters(model, tmp_path)


def test_adapters_are_not_walked_through(model, folder):
    few = [n for n, _ in outside_adapters(model)]
    afina.load_adapters(model, folder)
    assert [n for n, _ in outside_adapters(model)] == few
    assert len(list(hosts(model))) == 6
