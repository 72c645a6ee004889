"""A real comparison of tiny models, every run in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from afina.compare import runs
from afina.compare.comparison import Request, check, compare
from afina.compare.rate_search import Tried
from afina.compare.table import notes
from afina.errors import CheckpointError, RecipeError
from afina.train.report.events import Reporter

from ..train import tiny

pytestmark = pytest.mark.whole("tests/cli/test_compare.py compares in processes of its own, test_runs.py kills them")
METHODS = "full,lora,bitfit,ia3"
# The real worker, except that it kills itself where it is to train IA3.
WORKER = """
import json, os, pathlib, sys
from afina.compare import worker
measured = worker.measured
def killed(folder, *how):
    if json.loads((folder / "job.json").read_text())["recipe"]["method"]["type"] == "ia3":
        os.kill(os.getpid(), 9)
    return measured(folder, *how)
worker.measured = killed
sys.exit(worker.main())
"""


class Heard(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_folder):
    """The request, and what came of it."""
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "worker.py").write_text(WORKER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(runs, "WORKER", (sys.executable, str(folder / "worker.py")))
        recipe = tiny.write_recipe(folder, model_folder, training__max_steps=80)
        request = Request(str(recipe), METHODS, seeds=2, tune=0, out=folder / "out")
        _, comparison = compare(request, Heard())
    return request, comparison


def rows(finished):
    return {row["name"]: row for row in finished[1]["rows"]}


def test_methods_learn_the_same_items_with_the_same_budget(finished):
    found = rows(finished)
    assert {found[name]["status"] for name in ("full", "lora")} == {"done"}
    for name in ("full", "lora"):  # each at its own rate
        assert 2 * found[name]["loss"] < found[name]["curves"]["0"][0][1], name
    assert found["lora"]["tokens"] == found["full"]["tokens"] > 0
    assert all(len(row["by_seed"]) == 2 and row["complete"] for row in found.values() if row["status"] == "done")


def test_everything_is_measured(finished):
    found = rows(finished)
    assert found["full"]["share"] == 1
    assert found["lora"]["trainable"] == 8192
    assert found["full"]["size_bytes"] > found["lora"]["size_bytes"] > 4 * 8192
    for name in ("full", "lora"):
        row = found[name]
        assert row["memory_mb"] > 0
        assert row["cpu_s"] > 0
        assert row["wall_s"] > 0
        assert row["forgetting"]["before"] == pytest.approx(found["full"]["forgetting"]["before"], rel=1e-6)
        assert [step for step, _ in row["curves"]["0"]] == list(range(1, 81))
        assert row["curves"]["0"] != row["curves"]["1"]
        assert row["trained"] in (True, False)


def test_refused_and_killed_methods_are_rows_with_their_error(finished):
    found = rows(finished)
    assert found["bitfit"]["status"] == "refused"
    assert list(found["bitfit"]["errors"]) == ["0"]  # once is enough to know
    assert "no layer of the model has a bias" in found["bitfit"]["errors"]["0"]
    assert found["ia3"]["status"] == "crashed"
    assert found["ia3"]["errors"] == dict.fromkeys("01", "killed by SIGKILL (often: out of memory)")


def test_comparison_is_plain_json_and_the_best_comes_first(finished):
    comparison = json.loads(json.dumps(finished[1]))
    assert comparison["rows"][0]["name"] == comparison["best"]
    assert set(comparison["machine"]) == {"processor", "cores", "threads", "gpu", "system"}
    assert comparison["versions"]["torch"]


def test_time_is_that_of_the_seed_that_took_the_least(finished):
    for name in ("lora", "full"):
        each = [json.loads(path.read_text()) for path in (finished[0].out / "runs").glob(f"{name}-seed-*/result.json")]
        assert len(each) == 2
        for key in ("cpu_s", "wall_s"):
            assert rows(finished)[name][key] == min(one[key] for one in each)


def test_adapters_are_kept_and_whole_models_are_not(finished):
    out = finished[0].out / "runs"
    assert len(list(out.glob("lora-seed-*/model/adapter_model.safetensors"))) == 2
    assert not list(out.glob("full-seed-*/model"))


def test_second_call_trains_nothing_that_was_finished(finished, monkeypatch):
    monkeypatch.setattr(runs, "WORKER", (sys.executable, "-c", "raise SystemExit('nothing may run')"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    request, _ = finished
    wanted = Request(request.source, "lora,full", seeds=2, tune=0, out=request.out)
    heard = Heard()
    _, again = compare(wanted, heard)
    assert all(note.endswith("rows of text and label") for note in heard.notes)  # of the files, not of a run
    by_name = {row["name"]: row for row in again["rows"]}
    assert by_name["lora"]["by_seed"] == rows(finished)["lora"]["by_seed"]
    assert by_name["lora"]["quality"] == rows(finished)["lora"]["quality"]


def test_runs_at_once_find_what_runs_one_by_one_find(finished, tmp_path, monkeypatch):
    request, alone = finished
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(runs, "WORKER", (sys.executable, str(request.out.parent / "worker.py")))
    _, beside = compare(
        Request(request.source, "lora,bitfit", seeds=2, tune=0, out=tmp_path / "out", parallel=2), Heard()
    )
    assert (alone["at_once"], beside["at_once"]) == (1, 2)
    kept = ("status", "by_seed", "loss", "curves", "seeds", "complete", "trainable", "errors")
    here, there = ({row["name"]: row for row in made["rows"]} for made in (alone, beside))
    assert [there[name]["status"] for name in ("lora", "bitfit")] == ["done", "refused"]
    for name, row in there.items():
        assert {k: row.get(k) for k in kept} == {k: here[name].get(k) for k in kept}
    assert any("up to 2 at once" in note for note in notes(beside))
    assert not any("at once" in note for note in notes(alone))


@pytest.mark.whole("the second call above trains nothing again; here the first one was killed")
def test_comparison_that_was_killed_goes_on(tmp_path, model_folder):
    recipe = tiny.write_recipe(tmp_path, model_folder)
    words = [sys.executable, "-c", "from afina.cli import main; main()", "compare", str(recipe), "--methods",
             "lora,ia3", "--seeds", "1", "--no-tune", "--out", str(tmp_path / "out")]  # fmt: skip
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for line in first.stderr:  # the first run is done, the second one has begun
        if "2/2 ia3 seed 0 1/6" in line:
            break
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert len(list(tmp_path.glob("out/runs/*/result.json"))) == 1, first.stderr.read()
    done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"})
    assert "1/2" not in done.stderr
    assert "2/2 ia3 seed 0: done" in done.stderr
    assert len(list(tmp_path.glob("out/runs/*/result.json"))) == 2
    assert (tmp_path / "out" / "comparison.html").is_file()


@pytest.mark.parametrize(
    ("wrong", "option"),
    [
        ({"seeds": 0}, "--seeds"), ({"tune": -1}, "--tune"), ({"tune": 12}, "--tune"),
        ({"max_steps": 0}, "--max-steps"),
        ({"ranks": (4, 4)}, "--ranks"), ({"ranks": (0,)}, "--ranks"), ({"parallel": 0}, "--parallel"),
    ],
)  # fmt: skip
def test_numbers_that_make_no_comparison_are_refused(wrong, option):
    with pytest.raises(RecipeError, match=option):
        check(Request("tweets", "lora", **wrong))


def test_comparison_without_held_out_rows_is_refused(tmp_path, model_folder):
    recipe = tiny.write_recipe(tmp_path, model_folder, data__eval=None, data__eval_split=0)
    with pytest.raises(RecipeError, match="no held-out rows"):
        compare(Request(str(recipe), "lora", out=tmp_path / "out"), Reporter())


@pytest.mark.parametrize("what", ["a file", "a folder of something else"])
def test_comparison_is_not_written_into_what_is_none(tmp_path, model_folder, what):
    out = tmp_path / "out"
    if what == "a file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine").write_text("mine")
    recipe = tiny.write_recipe(tmp_path, model_folder)
    with pytest.raises(CheckpointError, match="the output holds something"):
        compare(Request(str(recipe), "lora", out=out), Reporter())
    assert (out if what == "a file" else out / "mine").read_text() == "mine"


def test_seeds_share_one_split_where_the_recipe_names_no_held_out_rows(tmp_path, model_folder):
    from afina.evidence.prepare import prepare
    from afina.train.recipe.settings import load_recipe

    recipe = load_recipe(str(tiny.write_recipe(tmp_path, model_folder, data__eval=None, data__eval_split=0.25)))
    shared = prepare(recipe, tmp_path / "data", Reporter())
    placed = [shared.placed(recipe, seed, tmp_path) for seed in (0, 1)]
    assert placed[0].data.eval == placed[1].data.eval
    assert shared.rows[:2] == (18, 6)
    assert [p.training.seed for p in placed] == [0, 1]


def test_search_has_a_seed_that_is_not_measured(tmp_path, model_folder, monkeypatch):
    pytest.importorskip("optuna")
    searched, measured = [], []

    class Runner:
        planned = finished = 0

        def __init__(self, *args, **how):
            pass

        def together(self, jobs):
            for job in jobs:
                job()

        def run(self, label, recipe, seed):
            measured.append(seed)
            return runs.Outcome("crashed", error="not run")

    def search(recipes, count, seed, shared, folder, reporter):
        searched.append((list(recipes), count, seed))
        return {name: Tried([], 0.05) for name in recipes}

    monkeypatch.setattr("afina.compare.comparison.Runner", Runner)
    monkeypatch.setattr("afina.compare.comparison.search", search)
    request = Request(str(tiny.write_recipe(tmp_path, model_folder)), "lora,ia3:lr=1", tune=2, out=tmp_path / "out")
    _, found = compare(request, Reporter())
    assert measured == [0, 0, 1, 1, 2, 2]
    assert searched == [(["lora"], 2, 3)]  # a rate that was given is not searched
    assert [(row["learning_rate"], row["learning_rate_from"]) for row in found["rows"]] == [
        (0.05, "tuned"),
        (1, "given"),
    ]
    assert found["recommendation"] == "No method could be trained."
