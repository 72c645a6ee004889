"""Pickles of PEFT before it wrote safetensors: asked for, read as tensors alone, the same adapter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import afina
from afina.core.disk.checkpoint import PICKLE_NAME, WEIGHTS_NAME
from afina.errors import CheckpointError, NumericError

from ..tiny import inputs, load, mlp, nudge, trained

CONFIGS = {
    "lora": {"r": 2, "target_modules": ["up", "down"], "bias": "lora_only", "modules_to_save": ["head"]},
    "ia3": {"target_modules": ["up", "down"], "feedforward_modules": ["down"]},
    "oft": {"oft_block_size": 4, "target_modules": ["up"]},
    "loha": {"r": 2, "target_modules": ["up", "down"]},
}


def pickled(folder: Path, change: Any = None) -> None:
    """Turn a folder's safetensors into a pickle, as `torch.save` of the reference wrote it."""
    tensors = load_file(folder / WEIGHTS_NAME)
    (folder / WEIGHTS_NAME).unlink()
    torch.save(tensors if change is None else change(tensors), folder / PICKLE_NAME)


@pytest.mark.parametrize("name", CONFIGS)
def test_pickle_that_is_asked_for_is_the_adapter(tmp_path: Path, name: str) -> None:
    kind = {"lora": afina.LoraConfig, "ia3": afina.IA3Config, "oft": afina.OFTConfig, "loha": afina.LoHaConfig}[name]
    model = nudge(afina.get_peft_model(mlp(), kind(**CONFIGS[name]))).eval()
    model.save_pretrained(tmp_path)
    expected = model(inputs())
    assert not torch.allclose(expected, mlp()(inputs()))
    pickled(tmp_path)
    read = afina.PeftModel.from_pretrained(mlp(), tmp_path, allow_pickle=True).eval()
    assert torch.equal(read(inputs()), expected)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_is_refused_where_pickles_are_asked_for(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    pickled(tmp_path, lambda tensors: {**tensors, "more": Bomb(tmp_path / "here")})
    with pytest.raises(CheckpointError, match="not a file of tensors"):
        load(tmp_path, allow_pickle=True)
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("wrong", ["list", "number", "not finite", "text"])
def test_what_is_no_adapter_is_refused(tmp_path: Path, wrong: str) -> None:
    trained().save_pretrained(tmp_path)
    pickled(tmp_path, {
        "list": lambda tensors: list(tensors.values()), "number": lambda tensors: {**tensors, "n": 3},
        "not finite": lambda tensors: {n: t * float("nan") for n, t in tensors.items()}, "text": None,
    }[wrong])  # fmt: skip
    if wrong == "text":
        (tmp_path / PICKLE_NAME).write_text("no pickle")
    with pytest.raises(NumericError if wrong == "not finite" else CheckpointError):
        load(tmp_path, allow_pickle=True)


def test_tensor_that_is_missing_from_a_pickle_is_named(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    pickled(tmp_path, lambda tensors: dict(list(tensors.items())[1:]))
    with pytest.raises(CheckpointError, match="missing"):
        load(tmp_path, allow_pickle=True)
