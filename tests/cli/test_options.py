"""An adapter whose base was moved is told where it is now, by every verb that loads it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ..train import tiny
from ..train.child import command


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, child: Any) -> tuple[Path, Path, Path]:
    """A trained adapter, where its base is now, and rows."""
    folder = tmp_path_factory.mktemp("moved")
    shutil.copytree(model_folder, folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(folder / "cache"))
        recipe = tiny.write_recipe(folder, folder / "base", training__max_steps=3)
        code, _, err = child(command, "train", recipe)
    assert code == 0, err
    (folder / "base").rename(folder / "elsewhere")
    return folder / "out", folder / "elsewhere", folder / "eval.jsonl"


def words_of(verb: str, adapter: Path, rows: Path, out: Path) -> list[Any]:
    return {
        "predict": ["predict", adapter, rows, "--out", out / "p.jsonl"],
        "merge": ["merge", adapter, out / "m"],
        "export": ["export", adapter, "--to", "safetensors", "--out", out / "e"],
        "convert": ["convert", adapter, out / "c"],
    }[verb]


@pytest.mark.parametrize("verb", ["predict", "merge", "export", "convert"])
def test_a_base_that_was_moved_is_missed_and_can_be_named(moved: Any, tmp_path: Path, child: Any, verb: str) -> None:
    adapter, base, rows = moved
    words = words_of(verb, adapter, rows, tmp_path)
    code, _, err = child(command, *words)
    assert code == 2, err
    assert "fix: --base MODEL says where it is now" in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())
    code, _, err = child(command, *words, "--base", base)
    assert code == 0, err
    assert list(tmp_path.iterdir())


def test_chat_takes_the_base_first_where_it_was_moved(moved: Any, child: Any) -> None:
    adapter, base, _ = moved
    code, _, err = child(command, "chat", adapter, "--prompt", "n4")
    assert code == 2
    assert "afina chat MODEL --adapter NAME=DIR" in err
    code, out, err = child(
        command, "chat", base, "--adapter", f"a={adapter}", "--prompt", "n4", "--max-new-tokens", "3"
    )
    assert code == 0, err
    assert "[a]" in out


def test_another_base_is_refused(moved: Any, tmp_path: Path, child: Any) -> None:
    adapter, _, rows = moved
    other = tiny.write_encoder(tmp_path / "other")
    code, _, err = child(command, "predict", adapter, rows, "--out", tmp_path / "p.jsonl", "--base", other)
    assert code == 2, err
    assert not (tmp_path / "p.jsonl").exists()
