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
        (["--methods", "loraa"], "did you mean 'lora'?"),
        (["--methods", "lora,lora"], "named twice"),
        (["--methods", "lora:rank=4"], "lora has no setting 'rank'"),
        (["--seeds", "0"], "--seeds"),
        (["--tune", "99"], "too many rates"),
        (["--ranks", "4,many"], "ranks are whole numbers"),
        (["--max-steps", "-3"], "--max-steps"),
        (["max_stepss=3"], "unknown key"),
        (["data.eval=null", "data.eval_split=0"], "no held-out rows"),
    ],
)
def test_mistakes_end_with_two_and_four_lines(recipe, tmp_path, child, words, message):
    code, out, err = child(command, "compare", str(recipe), "--out", str(tmp_path / "out"), *words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) <= 4
    assert not list(tmp_path.glob("out/runs/*"))


def started_with_another(recipe, out):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        return command("compare", recipe, "--out", out)


def test_several_processes_do_not_compare_the_same_at_once(recipe, tmp_path, child):
    code, _, said = child(started_with_another, str(recipe), str(tmp_path / "out"))
    assert code == 2
    assert "without torchrun" in said
    assert not (tmp_path / "out").exists()


def test_no_recipe_is_a_mistake(child):
    code, _, err = child(command, "compare")
    assert code == 2
    assert "no recipe" in err


@pytest.mark.parametrize(
    "refused",
    [[], pytest.param(["bitfit"], marks=pytest.mark.whole("tests/compare/test_comparison.py has one as a row"))],
)
def test_compare_prints_the_table_and_what_to_do_next(recipe, tmp_path, child, refused):
    out = tmp_path / "out"
    methods = ",".join(["lora", *refused])
    words = ["compare", str(recipe), "--methods", methods, "--ranks", "2", "--seeds", "1", "--no-tune"]
    code, said, err = child(command, *words, "--out", str(out))
    assert code == 0
    assert "lora r=2" in said
    assert all(f"{name}: refused: " in said for name in refused)
    assert f"1/{1 + len(refused)} lora r=2 seed 0: done" in err
    comparison = json.loads((out / "comparison.json").read_text())
    assert comparison["recommendation"] in said
    for name in ("comparison.csv", "comparison.md", "comparison.html", "pareto.svg"):
        assert (out / name).stat().st_size > 0
        assert str(out / name) in said


@pytest.mark.whole("tests/compare/test_rate_search.py searches, and the comparison above is printed alike")
def test_search_is_part_of_the_result(recipe, tmp_path, child):
    words = ["compare", str(recipe), "--methods", "ia3,lora:lr=0.02", "--tune", "2", "--seeds", "1"]
    code, _, err = child(command, *words, "--out", str(tmp_path / "out"))
    assert code == 0
    assert "ia3: learning rate" in err
    assert "1/2 ia3 seed 0" in err
    found = {r["name"]: r for r in json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]}
    assert found["ia3"]["learning_rate_from"] == "tuned"
    assert found["ia3"]["learning_rate"] in [t["learning_rate"] for t in found["ia3"]["search"]["trials"]]
    assert found["lora:lr=0.02"]["search"] is None
    assert "Learning rates tried" in (tmp_path / "out" / "comparison.html").read_text()
