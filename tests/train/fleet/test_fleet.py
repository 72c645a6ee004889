"""Several runs on one base at once: each is what it is alone."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from afina.core.config import methods
from afina.errors import RecipeError
from afina.train.fleet.fleet import Fleet
from afina.train.fleet.in_turn import Turn
from afina.train.fleet.many import train_many
from afina.train.fleet.member import Backward, Meeting, Member
from afina.train.loop.run import run
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from .. import tiny
from ..loop.test_adapt import OPTIONS

NO_RUN = ("BITFIT", "XLORA")
"""Methods for which the tiny model lacks biases, or adapters to choose from."""
ALONE = {
    "FULL": "the whole model is trained", "LAST_LAYERS": "adapts whole parts", "ADAPTION_PROMPT": "adapts whole parts",
    "REFT": "adapts whole parts", "SHADOW": "adapts whole parts", "POLY": "takes arguments of the model",
    "PVERA": "draws random numbers", "LILY": "its rows differ", "CARTRIDGE": "", "PREFIX_TUNING": "",
}  # fmt: skip
"""Methods that have passes of their own, and why; those of the cache have arguments that no shared pass has."""
VARIED = {
    "lora": {"method": {"type": "lora", "r": 4, "target_modules": "all-linear"}, "evaluation__enabled": True},
    "other": {"method": {"type": "lora", "r": 8, "target_modules": ["q_proj"]}, "training__seed": 3,
              "training__learning_rate": 0.003, "training__weight_decay": 0.1},
    "ia3": {"method": {"type": "ia3"}, "training__batch_size": 2, "training__max_steps": 8},
    "oft": {"method": {"type": "oft", "target_modules": ["q_proj"]}, "training__gradient_accumulation": 2},
    "drop": {"method": {"type": "lora", "r": 4, "lora_dropout": 0.1, "target_modules": ["v_proj"]}},
    "v1.5": {"method": {"type": "prompt_tuning", "num_virtual_tokens": 4}, "training__scheduler": "cosine"},
}  # fmt: skip


def recipe_of(folder, model, name, **changes):
    (folder / name).mkdir(parents=True)
    return load_recipe(str(tiny.write_recipe(folder / name, model, **{"evaluation__enabled": False, **changes})))


def of_method(folder, model, name):
    needed = {"ADAPTION_PROMPT": {"adapter_len": 10, "adapter_layers": 2}, **OPTIONS}.get(name, {})
    changes = {"method": {"type": name.lower(), **needed}, "training__max_steps": 3, "training__save_steps": 50,
               "training__batch_size": 2}  # fmt: skip
    if name in ("POLY", "MULTITASK_PROMPT_TUNING"):
        changes["data__task_column"] = "task"
    return recipe_of(folder, model, name, **changes)


def adapter(folder):
    file = Path(folder) / "adapter_model.safetensors"
    return load_file(file if file.is_file() else Path(folder) / "model.safetensors")


class Meets(Reporter):
    """Lets runs wait for each other after every second step, as candidates of a search do."""

    def reached(self, stage, parts):
        from transformers import TrainerCallback

        class Waits(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step % 2 == 0:
                    parts["meet"](state.global_step)

        if stage == "ready":
            parts["trainer"].add_callback(Waits())


def elsewhere(recipe, suffix):
    out = recipe.model_copy(deep=True)
    out.output.dir += suffix
    return out


def both(recipes):
    """What becomes of runs together; their adapters alone and together; and those of runs that take turns."""
    together = train_many(recipes, at_once=len(recipes))
    turns = Fleet(Meets(), alone="in turn").run([elsewhere(recipe, "-turns") for recipe in recipes], overwrite=False,
                                                resume=[False] * len(recipes))  # fmt: skip
    out = {}
    for recipe, trained, turn in zip(recipes, together, turns, strict=True):
        assert trained.error is None, trained.error
        assert turn.error is None, turn.error
        alone = run(elsewhere(recipe, "-alone"), Reporter())
        reports = [{k: r["training"][k] for k in ("loss", "steps")} for r in (alone.report, trained.result.report)]
        scores = [result.after for result in (alone, trained.result)]
        told = (trained.alone, trained.shared, trained.own)
        in_turn = adapter(turn.result.folder), turn.result.report["training"]["loss"], turn.shared, turn.own
        out[recipe.output.dir] = adapter(alone.folder), adapter(trained.result.folder), reports, scores, told, in_turn
    return out


def check_equal(found, loss=1e-5):
    one, other, reports, *_ = found
    assert one.keys() == other.keys()
    assert reports[0]["steps"] == reports[1]["steps"]
    assert reports[1]["loss"] == pytest.approx(reports[0]["loss"], abs=loss)
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=3e-5, msg=name)
    turn, loss_in_turn, shared, own = found[-1]
    assert turn.keys() == one.keys()
    assert all(torch.equal(turn[name], tensor) for name, tensor in one.items())
    assert (loss_in_turn, shared) == (reports[0]["loss"], 0)
    assert own >= reports[0]["steps"]


@pytest.fixture(scope="module")
def varied(model_folder, child, tmp_path_factory):
    folder = tmp_path_factory.mktemp("varied")
    recipes = [recipe_of(folder, model_folder, name, **changes) for name, changes in VARIED.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(folder / "cache"))
        found = child(both, recipes)
    return {Path(key).parent.name: value for key, value in found.items()}


@pytest.mark.parametrize("name", VARIED)
def test_a_run_among_others_has_the_losses_and_the_adapter_that_it_has_alone(name, varied):
    check_equal(varied[name])
    _, _, _, (alone, together), (why, shared, own), _ = varied[name]
    assert (alone is None) == (name != "lora")
    assert alone is None or together.loss == pytest.approx(alone.loss, rel=1e-4)
    if name == "drop":
        assert "draws random numbers" in why
        assert shared == 0 < own
        assert all(torch.equal(varied[name][1][key], value) for key, value in varied[name][0].items())
    else:
        assert why == ""
        assert shared > 0
    assert shared + own == {"ia3": 8, "oft": 12}.get(name, 6)


def test_the_runs_differ(varied):
    """So that equality with each of them says something."""
    losses = {found[2][0]["loss"] for found in varied.values()}
    assert len(losses) == len(VARIED)


@pytest.mark.whole("two runs of every method")
def test_every_method_has_among_all_others_what_it_has_alone(model_folder, child, tmp_path):
    names = [name for name in methods() if name not in NO_RUN]
    found = child(both, [of_method(tmp_path, model_folder, name) for name in names])
    for name, one in zip(names, found.values(), strict=True):
        check_equal(one)
        why, shared, _ = one[-2]
        assert shared == (0 if name in ALONE else 3), (name, why)
        if name in ALONE:
            assert ALONE[name] in why


def stopped_and_resumed(recipes):
    """Runs that a signal stops after the third step of one of them; what they say; and their adapters once resumed."""

    class Stops(Reporter):
        def reached(self, stage, parts):
            if stage == "ready":
                parts["trainer"].add_callback(at_step(3))

    first = train_many(recipes, Stops(), at_once=len(recipes))
    errors = [str(trained.error) for trained in first]
    again = train_many(recipes, Reporter(), resume=True, at_once=len(recipes))
    return errors, [adapter(trained.result.folder) for trained in again]


def at_step(step):
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGTERM)

    return Kill()


def test_a_signal_stops_all_after_their_step_and_all_go_on(model_folder, child, tmp_path, varied):
    names = ("lora", "other")
    recipes = [recipe_of(tmp_path, model_folder, name, **VARIED[name]) for name in names]
    errors, adapters = child(stopped_and_resumed, recipes)
    assert all("stopped by SIGTERM" in error for error in errors)
    for name, found in zip(names, adapters, strict=True):
        for key, value in varied[name][0].items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=3e-5)


def together(recipes):
    return [(t.name, str(t.error or ""), t.shared, t.result and t.result.report["training"]["steps"])
            for t in train_many(recipes, at_once=len(recipes))]  # fmt: skip


def test_a_run_that_fails_leaves_and_the_others_go_on(model_folder, child, tmp_path):
    good, other = (recipe_of(tmp_path, model_folder, n, **VARIED[n]) for n in ("lora", "other"))
    bad = recipe_of(tmp_path, model_folder, "bad", **{**VARIED["lora"], "training__learning_rate": 1e30})
    found = {name: rest for name, *rest in child(together, [good, bad, other])}
    assert "finite" in found["bad/out"][0] or "gradient" in found["bad/out"][0]
    assert found["lora/out"] == ["", 6, 6]
    assert found["other/out"] == ["", 6, 6]


class Crashes(Reporter):
    def reached(self, stage, parts):
        if stage == "trained" and parts["recipe"].output.dir.endswith("lora/out"):
            raise ZeroDivisionError("a fault of ours")


def crashing(recipes, crashes):
    try:
        found = Fleet(Crashes()).run(recipes, overwrite=False, resume=[False] * len(recipes), crashes=crashes)
    except ZeroDivisionError as error:
        return error.__notes__
    return [(str(one.error or ""), one.result is not None) for one in found]


@pytest.mark.parametrize("crashes", [True, pytest.param(False, marks=pytest.mark.whole("the other way is a branch"))])
def test_a_fault_of_ours_ends_all_unless_it_is_taken_as_the_end_of_one(model_folder, child, tmp_path, crashes):
    recipes = [recipe_of(tmp_path, model_folder, n, **VARIED[n], training__max_steps=1) for n in ("lora", "other")]
    found = child(crashing, recipes, crashes)
    if crashes:
        assert found == [("crashed\ngot: ZeroDivisionError: a fault of ours", False), ("", True)]
    else:
        assert "in the run lora/out" in found[0]


def waiting(fleet, place):
    member = Member("m", "m", Reporter(), fleet.join)
    member.turn = Turn(0, lambda: None)
    member.turn.request = Meeting(member, place)
    return member.turn


def test_runs_that_wait_for_each_other_go_on_together_from_the_lowest_place():
    fleet = Fleet(Reporter())
    early, late, too = (waiting(fleet, place) for place in (0, 1, 0))
    assert fleet.serve([early, late, too]) == {early: None, too: None}
    assert fleet.serve([late]) == {late: None}


def test_adapters_of_runs_that_ended_go_before_the_next_pass_and_not_before_a_way_back():
    fleet, gone = Fleet(Reporter()), []
    fleet.joint = SimpleNamespace(leave=gone.append)
    fleet.left.append("run0")
    back = waiting(fleet, 0)
    back.request = Backward(back.request.member, {}, {})
    fleet.serve([back])
    assert gone == []
    fleet.serve([waiting(fleet, 0)])
    assert gone == ["run0"]


def weights(recipe):
    """How often the base's weights are in memory for two runs."""
    places = []

    class Looks(Reporter):
        def reached(self, stage, parts):
            if stage == "ready":
                base = parts["model"].get_base_model()
                places.append({p.data_ptr() for p in base.parameters() if not p.requires_grad})

    other = recipe.model_copy(deep=True)
    other.output.dir += "-2"
    train_many([recipe, other], Looks(), at_once=2)
    return places


def test_the_bases_weights_are_in_memory_once(model_folder, child, tmp_path):
    one, other = child(weights, recipe_of(tmp_path, model_folder, "a", **VARIED["lora"]))
    assert one == other
    assert len(one) > 10


def test_runs_without_a_base_in_common_are_refused(model_folder, tmp_path):
    one, other = (recipe_of(tmp_path, model_folder, name) for name in "ab")
    with pytest.raises(RecipeError, match="no recipe"):
        train_many([])
    with pytest.raises(RecipeError, match="two runs of one folder"):
        train_many([one, one])
    other.model.dtype = "bfloat16"
    with pytest.raises(RecipeError, match="one in common"):
        train_many([one, other])
    assert json.dumps([p.name for p in tmp_path.rglob("out")]) == "[]"
