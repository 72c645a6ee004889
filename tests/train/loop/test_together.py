"""Several processes share a run: every task takes the steps that one process takes, and leaves the same files."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from afina.core.config import methods
from afina.errors import RecipeError, StoppedError
from afina.train.recipe.settings import load_recipe
from afina.train.report.checkpoints import newest_complete
from afina.train.report.events import Reporter
from afina.train.tasks import TASKS

from ...reference import cuts_here
from .. import tiny
from .test_adapt import ready

WHOLE = pytest.mark.whole("language models and classifiers take the same way")
FIRST = ("causal_lm", "sequence_classification")
STEPS = 4
DRAWS = {
    "POLY": "its router draws for every row",
    "PVERA": "it draws for every token",
    "XLORA": "its router drops out",
    "SHADOW": "it drops out",
}
KINDS = ("LORA", "ADALORA", "PROMPT_TUNING", "FULL")
OF_A_KIND = pytest.mark.whole("one of each kind: on layers, with a penalty, before the input, everything")
SHARED = [name for name, task in TASKS.items() if task.shares != "never"]


def ran(recipe, **how):
    """The folder and report of a run, and what backs its steps."""
    from afina.train.loop.run import run

    done = run(recipe, Reporter(), **how)
    return done.folder, done.report


# How long things took, and what a step's gradient was before the methods' own rates scaled it.
UNLIKE = ("_runtime", "_per_second", "_time", "_flos")


def written(folder):
    """All that was logged of every step, and the adapter."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [{k: v for k, v in line.items() if not k.endswith(UNLIKE)} for line in lines if "loss" in line]
    (weights,) = folder.glob("*model.safetensors")
    return steps, load_file(weights)


def differ(a, b):
    """How far two adapters are from one another, of the largest of their tensors."""
    largest = max(float(tensor.float().norm()) for tensor in a.values())
    return max(float((a[n].float() - b[n].float()).norm()) for n in a) / largest


@pytest.mark.parametrize("task", [t if t in FIRST else pytest.param(t, marks=WHOLE) for t in SHARED])
def test_two_processes_take_the_steps_of_one(task, models, child, together, tmp_path):
    found = {}
    for name, run in (("one", lambda *a: [child(*a)]), ("two", together)):
        folder = tmp_path / name
        folder.mkdir()
        file = tiny.write_task(folder, task, models, training__max_steps=STEPS, training__save_steps=STEPS)
        done = run(ran, load_recipe(str(file)))
        assert not [d for d in done if isinstance(d, Exception)], done
        found[name] = (*written(done[0][0]), done[0][1])
    (steps, state, report), (shared_steps, shared, told) = found.values()
    losses, again = ([step["loss"] for step in of] for of in (steps, shared_steps))
    assert len(losses) == STEPS
    assert losses[0] != losses[-1]
    assert state.keys() == shared.keys()
    if TASKS[task].shares == "exactly":
        assert [step.keys() for step in shared_steps] == [step.keys() for step in steps]
        assert all(s == pytest.approx(o, rel=2e-3, abs=1e-5) for s, o in zip(shared_steps, steps, strict=True))
        assert again == pytest.approx(losses, rel=1e-4)
        assert told["after"]["loss"] == pytest.approx(report["after"]["loss"], rel=1e-3)
        assert told["after"]["accuracy"] == report["after"]["accuracy"]
        # Adam's first steps are signs of gradients, which rounding turns where they are next to nothing.
        assert differ(state, shared) < 0.01
    else:  # a mean over fewer rows, where short ones weigh more
        assert again == pytest.approx(losses, rel=0.05)
    assert newest_complete(done[0][0]).name == f"checkpoint-{STEPS}"


def test_two_processes_go_on_where_one_was_cut_off_and_the_other_way_round(model_folder, child, together, tmp_path):
    runs = {"one": lambda *a: [child(*a)], "two": together}
    whole = None
    for first, then in (("one", "one"), ("one", "two"), ("two", "one")):
        folder = tmp_path / f"{first}-{then}"
        folder.mkdir()
        file = tiny.write_recipe(folder, model_folder, training__max_steps=4, training__save_steps=2,
                                 evaluation__enabled=False)  # fmt: skip
        recipe = load_recipe(str(file))
        out = runs[first](ran, recipe)[0][0]
        (out / "report.json").unlink()
        shutil.rmtree(out / "checkpoint-4")
        done = runs[then](ran_on, recipe)
        assert not [d for d in done if isinstance(d, Exception)], done
        state = load_file(out / "adapter_model.safetensors")
        whole = whole or state
        assert all(torch.allclose(state[n], whole[n], rtol=1e-3, atol=1e-5) for n in state)


@pytest.mark.parametrize("task", [t for t in TASKS if t not in SHARED])
def test_steps_that_cannot_be_shared_are_refused(task, models, together, tmp_path):
    errors = together(ran, load_recipe(str(tiny.write_task(tmp_path, task, models))))
    assert all(isinstance(e, RecipeError) and "cannot share" in str(e) for e in errors), errors


UNCUT = {"FULL": "method.type"}


ENGINES = [
    *((n, d) if n in KINDS else pytest.param(n, d, marks=OF_A_KIND) for n in methods() for d in ("ddp", "fsdp2")),
    *(pytest.param(n, "tp", marks=[cuts_here] if n == "LORA" else [OF_A_KIND, cuts_here]) for n in KINDS),
]


@pytest.mark.sampled(3, "tests/battery/test_spread.py asks the same of methods by themselves")
@pytest.mark.parametrize(("name", "distributed"), ENGINES)
def test_two_processes_take_the_steps_of_one_with_every_method(
    name, distributed, model_folder, child, together, tmp_path
):
    found = []
    for number, run in enumerate((lambda *a: [child(*a)], together)):
        folder = tmp_path / str(number)
        folder.mkdir()
        how = {"distributed": distributed} if number else {}
        done = run(ran, ready(name, folder, model_folder, evaluation__enabled=False, **how))
        if number and distributed == "tp" and name in UNCUT:
            assert all(isinstance(d, RecipeError) and UNCUT[name] in str(d) for d in done)
            return
        assert not [d for d in done if isinstance(d, Exception)], done
        found.append(written(done[0][0]))
    (steps, state), (again, shared) = found
    if name in DRAWS:
        assert again[0]["loss"] != again[-1]["loss"]
        return
    assert [step["loss"] for step in again] == pytest.approx([step["loss"] for step in steps], rel=1e-3)
    assert [step["grad_norm"] for step in again] == pytest.approx([step["grad_norm"] for step in steps], rel=1e-2)
    assert differ(state, shared) < 0.01


def ran_on(recipe):
    return ran(recipe, resume=True)


def test_rows_that_cannot_be_shared_out_are_refused_by_all(model_folder, together, tmp_path):
    file = tiny.write_recipe(tmp_path, model_folder, training__batch_size=3)
    for error in together(ran, load_recipe(str(file))):
        assert isinstance(error, RecipeError)
        assert "a multiple of 2" in str(error)
    assert not (tmp_path / "out").exists()


def test_what_the_first_one_cannot_do_ends_all(model_folder, together, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("x")
    first, second = together(ran, load_recipe(str(tiny.write_recipe(tmp_path, model_folder))))
    assert isinstance(first, RecipeError)
    assert isinstance(second, StoppedError)
    assert second.exit_code == 2


def of_sets(folder):
    return [line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in line]


def test_loss_of_each_data_set_is_that_of_all_processes_rows(model_folder, child, together, tmp_path):
    sets = [{"path": str(tiny.write_rows(tmp_path / f"{name}.jsonl", 8, start=100 * i))} for i, name in enumerate("ab")]
    changes = {"data__train": sets, "data__eval": None, "evaluation__enabled": False, "training__max_steps": 2}
    found = []
    for number, run in enumerate((lambda *a: [child(*a)], together)):
        (tmp_path / str(number)).mkdir()
        file = tiny.write_recipe(tmp_path / str(number), model_folder, **changes)
        found.append(of_sets(run(ran, load_recipe(str(file)))[0][0]))
    alone, shared = ([{k: v for k, v in line.items() if k.startswith("loss/")} for line in lines] for lines in found)
    assert [sorted(line) for line in alone] == [["loss/a", "loss/b"]] * 2
    assert shared == [pytest.approx(line, rel=1e-3) for line in alone]
