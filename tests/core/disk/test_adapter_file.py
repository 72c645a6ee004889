"""Adapters on disk that were opened and not loaded."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from afina.core.config import CONFIG_NAME
from afina.core.disk import adapter_file
from afina.core.disk.adapter_file import AdapterFile, foreign_file, refuse_other_config
from afina.core.disk.checkpoint import WEIGHTS_NAME, open_adapter
from afina.errors import CheckpointError

from ..tiny import FIRST, config, mlp, rewrite

OWN = FIRST.removeprefix("base_model.model.")


def renamed(file: AdapterFile, **patterns: str) -> AdapterFile:
    return AdapterFile(file.path, file.config, file.header, file.notes, key_mapping=patterns)


def test_tensors_and_shapes_have_the_names_of_the_plain_model(folder: Path) -> None:
    file = open_adapter(folder)
    assert file.config_path == folder / CONFIG_NAME
    assert file.shapes()[OWN] == (2, 8)
    assert file.tensors()[OWN].shape == (2, 8)
    assert file.tensors().keys() == file.shapes().keys()
    assert file.whole_numbers() == set()
    assert file.fitted(mlp()) is file


def test_whole_numbers_are_told_from_floating_point(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        names = sorted(tensors)
        tensors[names[0]] = tensors[names[0]].to(torch.int8)
        tensors[names[1]] = tensors[names[1]].bfloat16()

    rewrite(folder, change)
    file = open_adapter(folder)
    assert file.whole_numbers() == {min(file.shapes())}


def test_first_pattern_that_is_found_renames_a_key(folder: Path) -> None:
    file = open_adapter(folder)
    found = renamed(file, **{r"^nowhere": "x", r"^layers[.](\d)": r"blocks.\1", "up": "never"}).shapes()
    assert found.keys() == {k.replace("layers", "blocks") for k in file.shapes()}


def test_two_spellings_of_one_name_are_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="twice"):
        renamed(open_adapter(folder), **{r"lora_[AB]": "lora_A"}).shapes()


def test_folder_with_a_peft_type_is_never_another_librarys(folder: Path) -> None:
    assert foreign_file(folder / CONFIG_NAME, lambda name: folder / name, False) is None
    values = json.loads((folder / CONFIG_NAME).read_text())
    del values["peft_type"]
    (folder / CONFIG_NAME).write_text(json.dumps(values))
    assert foreign_file(folder / CONFIG_NAME, lambda name: folder / name, False) is None


def test_first_method_that_knows_a_layout_opens_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def knowing(found: object) -> Any:
        return SimpleNamespace(implementation=SimpleNamespace(open_foreign=lambda *_: found))

    readers = {"a": knowing(None), "b": knowing("file"), "c": knowing("other"), "d": SimpleNamespace(implementation=1)}
    monkeypatch.setattr(adapter_file, "methods", lambda: readers)
    assert foreign_file(folder / CONFIG_NAME, lambda name: folder / name, False) is None
    (folder / CONFIG_NAME).write_text("{}")
    assert foreign_file(folder / CONFIG_NAME, lambda name: folder / name, False) == "file"


def differing(folder: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        refuse_other_config(config(**options), open_adapter(folder))
    return str(caught.value)


def test_weights_go_only_into_an_adapter_of_the_same_configuration(folder: Path) -> None:
    text = differing(folder, r=4, lora_alpha=5)
    assert "got: lora_alpha=3, r=2" in text
    assert "expected: lora_alpha=5, r=4" in text
    assert str(folder / WEIGHTS_NAME) in text
    # What decides no tensor's meaning may differ.
    refuse_other_config(config(base_model_name_or_path="elsewhere", task_type="CAUSAL_LM"), open_adapter(folder))
