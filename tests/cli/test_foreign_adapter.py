"""`afina import FOLDER`: adapters of other programs become folders that everything here reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import afina

from ..core.disk.test_held_file import pickled
from ..core.tiny import inputs, llama, mlp, trained
from ..methods.reparam.test_lora_mlx import IDS, written
from ..train.child import command


def test_pickle_becomes_safetensors_where_it_is_asked_for(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path / "old")
    pickled(tmp_path / "old")
    words = ("import", tmp_path / "old", "--out", tmp_path / "new")
    code, _, err = command(*words)
    assert code == 2
    assert "--allow-pickle" in err
    code, out, err = command(*words, "--allow-pickle", "--base", "some/model")
    assert code == 0, err
    assert "only tensors were read" in out
    read = afina.PeftModel.from_pretrained(mlp(), tmp_path / "new").eval()
    assert torch.equal(read(inputs()), model(inputs()))
    assert read.peft_config["default"].base_model_name_or_path == "some/model"
    code, _, err = command(*words, "--allow-pickle")
    assert code == 2
    assert "--overwrite" in err


def test_adapter_of_mlx_becomes_lora(tmp_path: Path) -> None:
    expected = written(tmp_path / "mlx")
    code, out, err = command("import", tmp_path / "mlx", "--out", tmp_path / "lora", "--json")
    assert code == 0, err
    assert json.loads(out)["peft_type"] == "LORA"
    assert json.loads(out)["base"] == "some/model"
    read = afina.PeftModel.from_pretrained(llama(), tmp_path / "lora").eval()
    assert torch.allclose(read(IDS).logits, expected, atol=1e-5)


def test_what_only_its_model_can_name_is_told(tmp_path: Path) -> None:
    theirs = Path(__file__).parent.parent / "export" / "adapterhub" / "bert_channel"
    code, _, err = command("import", theirs, "--out", tmp_path / "new")
    assert code == 2
    assert "from_pretrained" in err


@pytest.mark.parametrize(("words", "told"), [
    ((), "--out"), (("--out", "new", "--from", "axolotl"), "--from"), (("--out", "."), "overwrite"),
])  # fmt: skip
def test_mistakes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], told: str) -> None:
    monkeypatch.chdir(tmp_path)
    trained().save_pretrained(tmp_path)
    code, _, err = command("import", tmp_path, *words)
    assert code == 2
    assert told in err
    assert len(err.strip().splitlines()) <= 4


def test_options_of_adapters_say_nothing_of_recipes(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("a: 1\n")
    for words in (("--base", "m"), ("--allow-pickle",)):
        code, _, err = command("import", tmp_path / "r.yaml", *words)
        assert code == 2
        assert words[0] in err


def test_folders_of_something_else_are_told_as_what_they_are(tmp_path: Path) -> None:
    for name, told in (("config.json", "a whole model"), ("model.gguf", "GGUF is written, not read")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("{}")
        code, _, err = command("import", folder, "--out", tmp_path / "new")
        assert code == 2
        assert told in err
