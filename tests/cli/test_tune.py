from __future__ import annotations

import json

import pytest

from ..train import tiny
from ..train.child import command


@pytest.fixture
def recipe(tmp_path, model_folder):
    return tiny.write_recipe(tmp_path, model_folder, training__max_steps=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--space", "rates"], "did you mean 'rate'?"),
        (["--space", "seed"], "cannot be searched"),
        (["--space", ""], "nothing to search"),
        (["--space", "rate="], "an empty value"),
        (["--space", "method=loraa,lora"], "did you mean 'lora'?"),
        (["--space", "rank=many"], "r"),
        (["--candidates", "1"], "--candidates"),
        (["--rungs", "-1"], "--rungs"),
        (["max_stepss=3"], "unknown key"),
        (["data.eval=null", "data.eval_split=0"], "no held-out rows"),
    ],
)
def test_mistakes_end_with_two_and_four_lines(recipe, tmp_path, child, words, message):
    code, out, err = child(command, "tune", str(recipe), "--out", str(tmp_path / "out"), *words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if "rows of text and label" not in line and "space: " not in line]
    assert len(lines) <= 4
    assert not list(tmp_path.glob("out/runs/*"))


def test_no_recipe_is_a_mistake(child):
    code, _, err = child(command, "tune")
    assert code == 2
    assert "no recipe" in err


def test_tune_prints_the_table_and_a_recipe_that_trains(recipe, tmp_path, child):
    out = tmp_path / "found"
    code, said, err = child(
        command, "tune", str(recipe), "--space", "rate=1e-3,1e-2", "--rungs", "1", "--out", str(out)
    )
    assert code == 0
    assert "tuning " in err
    found = json.loads((out / "tune.json").read_text())
    assert {row["name"] for row in found["rows"]} == {"rate=0.001", "rate=0.01"}
    assert f"Take {found['best']}: held-out loss" in said
    assert "rows went through training instead of 16" in said
    for name in ("best.yaml", "tune.html", "tune.json"):
        assert (out / name).stat().st_size > 0
        assert str(out / name) in said
    assert f"afina train {out / 'best.yaml'}" in said
    code, said, _ = child(command, "train", str(out / "best.yaml"))
    assert code == 0
    assert (tmp_path / "out" / "report.json").is_file()
    assert "results in" in said
