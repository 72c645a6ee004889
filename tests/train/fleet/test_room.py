"""How many runs fit at once, and that the others wait."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from afina.errors import RecipeError
from afina.train.fleet import room
from afina.train.fleet.many import train_many
from afina.train.fleet.room import planned_bytes
from afina.train.loop.plans.base_shares import Share
from afina.train.loop.plans.rehearsal import Untold
from afina.train.loop.run import run
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter
from afina.train.report.output import REPORT

from .. import tiny
from .test_fleet import adapter, elsewhere, recipe_of


class Words(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.began: list[str] = []
        self.now: set[str] = set()
        self.most = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def reached(self, stage, parts) -> None:
        folder = str(parts["recipe"].output.dir) if "recipe" in parts else ""
        if stage == "ready":
            self.now.add(folder)
            self.most = max(self.most, len(self.now))
        elif stage == "trained":
            self.now.discard(folder)


def three(folder, model, steps=2):
    out = []
    for rank in (4, 8, 4):
        place = folder / f"run{len(out)}"
        place.mkdir()
        method = {"type": "lora", "r": rank, "target_modules": "all-linear"}
        changes = {"evaluation__enabled": False, "training__max_steps": steps, "training__seed": len(out)}
        out.append(load_recipe(str(tiny.write_recipe(place, model, method=method, **changes))))
        out[-1].data = out[0].data
    return out


def trained_in_little_room(recipes):
    """Trained where two fit: what was said, and most at once."""
    words = Words()
    with (
        patch.object(room, "_shares", lambda recipes: [Share(14, 10, own) for own in (4, 5, 4)]),
        patch.object(room, "free_bytes", lambda _: 19),
        patch.object(room, "in_turn", lambda _: ""),  # as on a GPU
    ):
        found = train_many(recipes, words)
    adapters = [load_file(Path(one.result.folder) / "adapter_model.safetensors") for one in found]
    return [n for n in words.notes if "fit at once" in n], words.most, found, adapters


def test_runs_that_do_not_fit_at_once_wait_and_end_as_all_do(model_folder, child, tmp_path):
    notes, most, found, adapters = child(trained_in_little_room, three(tmp_path, model_folder))
    assert notes == ["2 of 3 runs fit at once, the others wait (at_once=)"]
    assert most == 2
    assert [one.name for one in found] == ["run0/out", "run1/out", "run2/out"]
    assert [one.error for one in found] == [None] * 3
    assert [one.shared for one in found] == [2, 2, 0]
    assert all(adapters)


def needs(recipes):
    with patch.object(room, "forecast", wraps=room.forecast) as forecast:
        shares = room._shares(recipes)
        asked = [call.args[0].recipe.method.r for call in forecast.call_args_list]
    with patch.object(room, "_shares", return_value=shares):
        return shares, planned_bytes(recipes), asked


@pytest.mark.whole("two plans")
def test_runs_that_take_as_much_are_planned_once_and_the_weights_are_there_once(model_folder, child, tmp_path):
    shares, all_at_once, asked = child(needs, three(tmp_path, model_folder))
    assert asked == [4, 8]
    assert shares[0] == shares[2]
    assert shares[0].own < shares[1].own
    assert all_at_once == shares[0].common + sum(one.own for one in shares) > shares[0].common > 0


def stopped(recipes):
    import os
    import signal

    from transformers import TrainerCallback

    class Ends(TrainerCallback):
        def on_step_end(self, args, state, *others, **kwargs):
            if state.global_step == 1:  # a second one would end it at once
                os.kill(os.getpid(), signal.SIGTERM)

    class Stops(Reporter):
        def reached(self, stage, parts):
            if stage == "ready":
                parts["trainer"].add_callback(Ends())

    return [str(one.error) for one in train_many(recipes, Stops(), at_once=1)]


def gone_on(recipes):
    return [one.error or one.result.report["training"]["steps"] for one in train_many(recipes, at_once=1, resume=True)]


def test_a_signal_stops_those_that_wait_too_and_resuming_begins_them(model_folder, child, tmp_path):
    recipes = three(tmp_path, model_folder, steps=6)[:2]
    errors = child(stopped, recipes)
    assert "after step" in errors[0]
    assert "before the run began" in errors[1]
    assert child(gone_on, recipes) == [6, 6]


def one_after_the_other(recipes):
    """Trained as nothing says otherwise; and again, when one of three had not begun and one had not come to a save."""
    words, again = Words(), Words()
    first = train_many(recipes, words)
    folders = [Path(recipe.output.dir) for recipe in recipes]
    shutil.rmtree(folders[2])
    (folders[1] / REPORT).unlink()
    for checkpoint in folders[1].glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    second = train_many(recipes, again, resume=True)
    other = [recipe.model_copy(deep=True) for recipe in recipes]
    other[0].training.learning_rate = 1.0
    third = train_many(other, resume=True)
    told = [[(one.alone, one.shared, one.own) for one in found] for found in (first, second)]
    losses = [[one.result.report["training"]["loss"] for one in found] for found in (first, second)]
    return words.notes, words.most, again.notes, told, losses, str(third[0].error)


def test_on_a_processor_runs_follow_each_other_and_resuming_does_what_is_not_done(model_folder, child, tmp_path):
    notes, most, again, told, losses, wrong = child(one_after_the_other, three(tmp_path, model_folder))
    assert notes[0] == f"3 runs on one base, one after the other: {room.IN_TURN} (at_once=)"
    assert most == 1
    assert told == [[(room.IN_TURN, 0, 2)] * 3, [("", 0, 0), *[(room.IN_TURN, 0, 2)] * 2]]
    assert "run0/out: had ended, and is as it was" in again
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3
    assert "a resumed run has the settings that it began with" in wrong


def test_passes_are_shared_where_it_is_said_and_else_on_gpus(monkeypatch):
    assert room.in_turn("cpu") == room.IN_TURN
    assert room.in_turn("cpu", True) == ""
    monkeypatch.setattr(room, "place", lambda _: SimpleNamespace(kind="cuda"))
    assert room.in_turn("auto") == ""
    assert room.in_turn("auto", False) == "passes are not to be shared"


def test_runs_that_cannot_be_planned_are_trained_at_once_and_it_is_said(monkeypatch, tmp_path, model_folder):
    def untold(recipes):
        raise Untold("memory cannot be told", fix="why")

    words = Words()
    monkeypatch.setattr(room, "_shares", untold)
    assert room.waves(three(tmp_path, model_folder), words) == [[0, 1, 2]]
    assert words.notes == ["all 3 runs are trained at once: memory cannot be told (why)"]


def test_one_at_least_is_trained_at_once(tmp_path, model_folder):
    with pytest.raises(RecipeError, match="at_once"):
        train_many(three(tmp_path, model_folder), at_once=0)


def frozen(recipes):
    """What runs say that keep what frozen layers give out, one after the other; and their adapters, so and alone."""
    words = Words()
    found = train_many(recipes, words)
    alone = [run(elsewhere(recipe, "-alone"), Reporter()) for recipe in recipes]
    kept = [note.split("kept: ")[1] for note in words.notes if "frozen layers kept" in note]
    return kept, [(adapter(one.result.folder), adapter(other.folder)) for one, other in zip(found, alone, strict=True)]


def test_runs_that_keep_what_frozen_layers_give_out_find_what_the_others_kept(model_folder, child, tmp_path):
    upper = {"type": "lora", "r": 4, "target_modules": "all-linear", "layers_to_transform": [1]}
    first = recipe_of(tmp_path, model_folder, "first", method=upper, training__cache_frozen=True)
    other = recipe_of(tmp_path, model_folder, "other", method={**upper, "r": 8}, training__cache_frozen=True,
                      training__batch_size=8, training__max_steps=3)  # fmt: skip
    other.data = first.data
    kept, adapters = child(frozen, [first, other])
    assert kept == ["0 of 6 batches", "3 of 3 batches"]
    for mine, theirs in adapters:
        for name, tensor in theirs.items():
            torch.testing.assert_close(mine[name], tensor, rtol=1e-4, atol=3e-5)
