"""Real searches over tiny models, each in a process of its own."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from afina.errors import ConfigError, RecipeError, StoppedError
from afina.train.fleet.room import IN_TURN
from afina.train.loop.run import run
from afina.train.recipe.sections import MethodSection
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter
from afina.tune import search as module
from afina.tune.climb import STAGE
from afina.tune.search import Request, check, tune

from ..train import tiny
from .made import contender as contender_of

SPACE = ("rate=1e-7,1e-3,2e-2,1e30",)


class Heard(Reporter):
    def __init__(self):
        self.notes, self.told = [], []

    def note(self, text):
        self.notes.append(text)

    def progress(self, state):
        if state.stage == STAGE:
            self.told.append((state.done, state.total))


def searched(request):
    heard = Heard()
    _, found = tune(request, heard)
    return found, heard.notes, heard.told


def rows_of(found):
    return {row["name"]: row for row in found["rows"]}


@pytest.fixture(scope="module")
def request_of(tmp_path_factory, model_folder):
    def made(space=SPACE, **changes):
        folder = tmp_path_factory.mktemp("search")
        recipe = tiny.write_recipe(folder, model_folder, training__max_steps=16)
        tiny.write_rows(folder / "train.jsonl", 100)
        return Request(str(recipe), space, **{"rungs": 2, "at_once": 16, "out": folder / "out", **changes})

    return made


@pytest.fixture(scope="module")
def finished(request_of, child, tmp_path_factory):
    request = request_of()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        return request, *child(searched, request)


def test_every_candidate_is_a_row_with_what_became_of_it(finished):
    _, found, notes, _ = finished
    assert f"candidates take turns on one base: {IN_TURN}" in notes
    rows = rows_of(found)
    best = rows["rate=0.02"]
    assert found["best"] == best["name"] == found["rows"][0]["name"]
    assert (best["status"], best["trained"], best["steps"], best["alone"]) == ("done", True, 16, IN_TURN)
    failed = rows["rate=1e+30"]
    assert failed["status"] == "failed"
    assert "finite" in failed["reason"]
    left = rows["rate=1e-07"]
    assert left["status"] == "left"
    assert left["steps"] in (4, 8)
    assert "significantly worse than rate=0.02" in left["reason"]
    assert left["loss"] is None
    assert [step for step, _ in left["rungs"]] == [s for s in (4, 8) if s <= left["steps"]]
    assert any("of 16: best rate=0.02" in note and "out: rate=1e-07" in note for note in notes)


@pytest.mark.whole("nine runs; the search above has all but whole models and several methods")
def test_methods_are_searched_and_whole_models_have_passes_of_their_own(request_of, child):
    found, *_ = child(searched, request_of(("method=lora,ia3,full", "rate=1e-7,x1,2e-2", "rank=4"), share_passes=True))
    rows = rows_of(found)
    assert len(rows) == 9
    assert rows["full rate=0.02"]["alone"] == "the whole model is trained"
    assert rows["lora rank=4 rate=0.02"]["alone"] == rows["ia3 rate=0.02"]["alone"] == ""
    assert rows["lora rank=4 rate=0.02"]["trainable"] < rows["full rate=0.02"]["trainable"]


def test_what_was_saved_is_what_was_not_trained(finished):
    saved, rows = finished[1]["saved"], finished[1]["rows"]
    assert saved["rows_of_all"] == 4 * 16 * 4
    assert saved["rows"] == sum(4 * row["steps"] for row in rows) < saved["rows_of_all"]
    assert saved["seconds_of_all"] > saved["seconds"] > 0


def test_progress_ends_where_all_is_done(finished):
    _, found, _, told = finished
    assert all(done <= total for done, total in told)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] <= found["saved"]["rows"]


def alone(recipe):
    from afina.compare.worker import _history

    done = run(recipe, Reporter())
    return _history(done.folder)


def test_a_candidates_losses_are_those_of_its_run_alone(finished, child, tmp_path):
    request, found, *_ = finished
    row = rows_of(found)["rate=0.02"]
    data = request.out / "data"
    words = {"learning_rate": "2e-2", "data.train": str(data / "tune_train.jsonl"),
             "data.eval": str(data / "tune_held_out.jsonl"), "output.dir": str(tmp_path / "alone")}  # fmt: skip
    curve = child(alone, load_recipe(request.source, list(words.items())))[: row["steps"]]
    assert [step for step, _ in row["curves"]["0"]] == [step for step, _ in curve]
    assert [loss for _, loss in row["curves"]["0"]] == pytest.approx([loss for _, loss in curve], abs=1e-4)
    assert curve[0][1] > 1.2 * curve[-1][1]


def test_the_best_recipe_is_the_recipe_with_the_best_settings(finished, tmp_path):
    request, found, *_ = finished
    (tmp_path / "best.yaml").write_text(found["best_recipe"])
    mine, theirs = (load_recipe(str(p)).model_dump() for p in (tmp_path / "best.yaml", Path(request.source)))
    row = rows_of(found)[found["best"]]
    assert mine["method"]["type"] == row["method"]
    assert mine["training"]["learning_rate"] == row["learning_rate"]
    for section in ("model", "data", "evaluation", "output"):
        assert mine[section] == theirs[section]
    assert {k: v for k, v in mine["training"].items() if k != "learning_rate"} == {
        k: v for k, v in theirs["training"].items() if k != "learning_rate"
    }


def test_a_search_that_is_done_trains_nothing_again(finished, monkeypatch):
    request, found, *_ = finished
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(module, "Fleet", None)
    again, *_ = searched(request)
    assert again == found
    assert not list(request.out.glob("runs/*/model"))


def stopped_and_resumed(request):
    """A search that a signal stops at the sixth step of a run, and again."""
    from afina.tune import climb

    class Stops(climb.Rungs):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 6 and not Path("stopped").exists():
                Path("stopped").touch()
                os.kill(os.getpid(), signal.SIGTERM)
            super().on_step_end(args, state, control, **kwargs)

    os.chdir(request.out.parent)
    climb.Rungs = Stops
    try:
        tune(request, Reporter())
        said = "not stopped"
    except StoppedError as error:
        said = str(error), error.exit_code
    kept = sorted(path.parent.parent.name for path in request.out.glob("runs/*/model/checkpoint-*"))
    return said, kept, tune(request, Reporter())[1], tune(request.__class__(**{**vars(request), "out": Path("other")}),
                                                          Reporter())[1]  # fmt: skip


@pytest.mark.whole("three searches; tests/train/fleet resumes what a signal stopped, tests/tune/test_climb.py waits")
def test_a_search_that_was_stopped_goes_on_as_it_would_have(request_of, child):
    said, kept, found, other = child(stopped_and_resumed, request_of(("rate=1e-7,1e-3,2e-2",)))
    assert said[1] == 128 + signal.SIGTERM
    assert "it goes on" in said[0]
    assert kept
    for row, same in zip(found["rows"], other["rows"], strict=True):
        assert {k: v for k, v in row.items() if k not in ("curves", "loss", "rungs", "to_best")} == {
            k: v for k, v in same.items() if k not in ("curves", "loss", "rungs", "to_best")
        }
        assert [loss for _, loss in row["rungs"]] == pytest.approx([loss for _, loss in same["rungs"]], abs=1e-3)
        assert len(row["curves"]["0"]) == row["steps"]
    assert found["saved"]["rows"] == other["saved"]["rows"]


@pytest.mark.parametrize(
    ("wrong", "option"),
    [({"most": 1}, "--candidates"), ({"rungs": -1}, "--rungs"), ({"at_once": 0}, "--at-once"),
     ({"max_steps": 0}, "--max-steps"), ({"space": ()}, "--space")],
)  # fmt: skip
def test_numbers_that_make_no_search_are_refused(wrong, option):
    with pytest.raises(RecipeError, match=option):
        check(Request(**{"source": "tweets", "space": ("rate",), **wrong}))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("method.no_such=1,2", "lora has no setting 'no_such'"),
        ("rank=0,4", "r"),
        ("rate=1e-3,fast", "wrong value for training.learning_rate"),
        ("method=lora,loraa", "did you mean 'lora'?"),
        ("method=ia3,full,rank", "no candidate's method has this setting"),
    ],
)
def test_settings_that_are_wrong_are_refused_before_anything_runs(request_of, monkeypatch, space, message):
    monkeypatch.setattr(module, "Fleet", None)
    with pytest.raises((RecipeError, ConfigError), match=re.escape(message)):
        tune(request_of((space,)), Reporter())


def waiting(recipe, *names):
    out = [contender_of(recipe, name, 0.01) for name in names]
    for one in out:
        one.recipe.method = MethodSection(type="full" if one.name == "full" else "lora")
    return out


def test_as_many_fly_together_as_fit_and_whole_models_alone(recipe, monkeypatch):
    heard = Heard()
    search = module.Search(SimpleNamespace(placed=lambda r, *a, **k: r), Path(), 2, None, heard)
    search.waiting = waiting(recipe, "a", "b", "full", "c")
    asked = []
    monkeypatch.setattr(
        module, "fitting", lambda recipe, **how: asked.append((recipe.method.fields.get("r"), how)) or 2
    )
    search.waiting[3].recipe.method, search.alone = MethodSection(type="lora", r=64), IN_TURN
    assert search._fitting() == 2
    assert asked == [(64, {"in_turn": True})]
    assert heard.notes == ["2 of 3 candidates are trained at once (--at-once)"]
    monkeypatch.setattr(module, "fitting", lambda recipe, **how: None)
    assert search._fitting() == module._MOST
    assert [one.name for one in module._together(search.waiting, 2)] == ["a", "b"]
    assert [one.name for one in module._together(search.waiting[2:], 2)] == ["full"]
    assert [one.name for one in module._together(search.waiting, 16)] == ["a", "b", "c"]


def test_half_of_the_candidates_are_expected_to_leave_at_each_rung():
    assert module._halved(0, 80, 2) == 20 + 20 / 2 + 40 / 4
    assert module._halved(20, 80, 2) == 20 / 2 + 40 / 4
    assert module._halved(60, 80, 2) == 20


def test_the_time_of_a_fleet_is_shared_out_by_rows(recipe, tmp_path):
    quick, slow, none = waiting(recipe, "a", "b", "c")
    for one, steps in ((quick, 10), (slow, 30), (none, 0)):
        one.record.steps = steps
        one.at(tmp_path / one.name)
    module._share_out(8.0, [quick, slow, none])
    module._share_out(8.0, [quick, slow, none])
    assert [one.record.seconds for one in (quick, slow, none)] == [4.0, 12.0, 0.0]
