"""Whether each process of a run has the whole model or a part of it: chosen, refused, looked at."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from afina.errors import RecipeError
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from .. import tiny


class Looked(Reporter):
    """What is said, and of the base's weights how many there are, are sharded, and what share lies here (%)."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.parts: tuple[int, int, int] | None = None

    def note(self, text: str) -> None:
        self.notes.append(text)

    def reached(self, stage, parts) -> None:
        from ...battery.spread import parts as of

        if stage == "ready":
            self.parts = of(parts["model"].get_base_model())


def looked(recipe, free=None, **how):
    """A run's folder and report, what was said, and how the base lies."""
    from afina.train.loop.plans import planning
    from afina.train.loop.run import run

    own, reporter = planning.free_bytes, Looked()
    try:
        if free is not None:
            planning.free_bytes = lambda device: free
        done = run(recipe, reporter, **how)
    finally:
        planning.free_bytes = own
    return done.folder, done.report, reporter.notes, reporter.parts


def recipe_in(folder, model_folder, **changes):
    folder.mkdir(exist_ok=True)
    own = {"training__max_steps": 4, "training__save_steps": 2, **changes}
    return load_recipe(str(tiny.write_recipe(folder, model_folder, **own)))


def test_one_process_cannot_share_a_model(model_folder, tmp_path, child):
    with pytest.raises(RecipeError, match="nobody to share the model with"):
        child(looked, recipe_in(tmp_path, model_folder, distributed="fsdp2"))


@pytest.mark.parametrize(
    ("key", "changes"),
    [("training.optimizer", {"method": {"type": "full"}, "training__optimizer": "adafactor"}),
     ("training.cache_frozen", {"training__cache_frozen": True}),
     ("model.quantize", {"model__quantize": "int8"})],
)  # fmt: skip
def test_what_needs_the_whole_model_is_refused_before_anything_is_loaded(
    key, changes, model_folder, together, tmp_path
):
    for error in together(looked, recipe_in(tmp_path, model_folder, distributed="fsdp2", **changes)):
        assert isinstance(error, RecipeError)
        assert key in str(error)
    assert not (tmp_path / "out").exists()


def by_own_recipe(recipe):
    recipe.training.learning_rate = 0.01 * (1 + int(os.environ["RANK"]))
    return looked(recipe)


def test_processes_with_different_recipes_are_told_which_setting_differs(model_folder, together, tmp_path):
    for error in together(by_own_recipe, recipe_in(tmp_path, model_folder)):
        assert isinstance(error, RecipeError)
        assert str(error).splitlines() == [
            "process 1: training.learning_rate: the processes were given different recipes",
            "got: 0.02; expected: 0.01, as process 0", "fix: give all of them the same command",
        ]  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_model_that_does_not_fit_a_device_is_spread_by_itself_and_one_that_fits_is_not(
    model_folder, together, tmp_path
):
    for free, spread in ((2**20, True), (2**40, False)):
        recipe = recipe_in(tmp_path / str(free), model_folder, evaluation__enabled=False)
        for number, (_, _, notes, (every, sharded, here)) in enumerate(together(looked, recipe, free)):
            assert sharded == (every if spread else 0)
            assert (here < 60) == spread
            assert any("fsdp2, because it takes" in note for note in notes) == ((spread and number == 0) or spread)


def test_a_spread_model_is_measured_answers_and_checkpoints_as_a_whole_one(model_folder, child, together, tmp_path):
    more = {"training__gradient_checkpointing": True, "evaluation__every": 2}
    folder, report, _, parts = child(looked, recipe_in(tmp_path / "one", model_folder, **more))
    assert parts[1] == 0
    done = together(looked, recipe_in(tmp_path / "two", model_folder, distributed="fsdp2", **more))
    assert not [d for d in done if isinstance(d, Exception)], done
    (shared, told, _, (every, sharded, here)), _ = done
    assert sharded == every
    assert here < 60
    for stage in ("before", "after"):
        assert told[stage]["loss"] == pytest.approx(report[stage]["loss"], rel=1e-3)
        assert told[stage]["accuracy"] == report[stage]["accuracy"]
    a, b = (load_file(f / "adapter_model.safetensors") for f in (folder, shared))
    assert all(torch.allclose(a[n], b[n], rtol=1e-2, atol=1e-3) for n in a)
    assert report["before"]["loss"] != report["after"]["loss"]


@pytest.mark.whole("tests/battery/test_spread.py asks more")
@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_a_base_in_four_bits_is_spread_and_trains_as_a_whole_one(model_folder, child, together, tmp_path):
    folder, report, _, _ = child(looked, recipe_in(tmp_path / "one", model_folder, model__quantize="nf4"))
    how = {"distributed": "fsdp2", "model__quantize": "nf4"}
    done = together(looked, recipe_in(tmp_path / "two", model_folder, **how))
    assert not [d for d in done if isinstance(d, Exception)], done
    (shared, told, _, (every, sharded, here)), _ = done
    assert sharded == every
    assert here < 60
    for stage in ("before", "after"):  # one process computes in bfloat16 where the processor can
        assert told[stage]["loss"] == pytest.approx(report[stage]["loss"], rel=1e-2)
    assert (
        load_file(folder / "adapter_model.safetensors").keys() == load_file(shared / "adapter_model.safetensors").keys()
    )


def test_a_spread_run_goes_on_in_one_process(model_folder, child, together, tmp_path):
    found = []
    for name, first in (("one", lambda *a: [child(*a)]), ("two", together)):
        how = {"distributed": "fsdp2"} if name == "two" else {}
        folder = first(looked, recipe_in(tmp_path / name, model_folder, evaluation__enabled=False, **how))[0][0]
        (folder / "report.json").unlink()
        shutil.rmtree(folder / "checkpoint-4")
        recipe = recipe_in(tmp_path / name, model_folder, evaluation__enabled=False)
        found.append(load_file(child(resumed, recipe) / "adapter_model.safetensors"))
    a, b = found
    assert all(torch.allclose(a[n], b[n], rtol=1e-3, atol=1e-5) for n in a)


def resumed(recipe):
    return looked(recipe, resume=True)[0]
