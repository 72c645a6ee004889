"""Full fine-tuning of a model that two processes have in parts: the steps of one process, checkpoints in parts."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from afina.train.loop.steps.shards import has_shards
from afina.train.recipe.settings import load_recipe

from ... import tiny
from ..test_together import differ, ran, ran_on, written

WHOLE = pytest.mark.whole("the same way")
HOW = {"method": {"type": "full"}, "training__learning_rate": 0.002, "training__max_steps": 4,
       "training__save_steps": 2, "evaluation__enabled": False}  # fmt: skip


def recipe_in(folder, models, task="causal_lm", **changes):
    folder.mkdir(exist_ok=True)
    return load_recipe(str(tiny.write_task(folder, task, models, **{**HOW, **changes})))


def done(answers):
    """The first process's folder."""
    assert not [a for a in answers if isinstance(a, Exception)], answers
    return answers[0][0]


def read(checkpoint):
    """What transformers makes of a checkpoint."""
    from transformers import AutoModelForCausalLM

    return {n: t.clone() for n, t in AutoModelForCausalLM.from_pretrained(checkpoint).state_dict().items()}


@pytest.mark.parametrize(("first", "then"), [("two", "one"), pytest.param("two", "two", marks=WHOLE),
                                             pytest.param("one", "two", marks=WHOLE)])  # fmt: skip
def test_a_run_goes_on_from_parts_in_any_number_of_processes(first, then, models, child, together, tmp_path):
    runs = {"one": lambda *a: [child(*a)], "two": together}
    how = {"one": {}, "two": {"distributed": "fsdp2"}}
    alone = load_file(done(runs["one"](ran, recipe_in(tmp_path / "alone", models))) / "model.safetensors")
    out = done(runs[first](ran, recipe_in(tmp_path / "run", models, **how[first])))
    early, late = out / "checkpoint-2", out / "checkpoint-4"
    assert has_shards(early) == (first == "two")
    for state in (load_file(out / "model.safetensors"), child(read, late)):
        assert differ(alone, {n: state[n] for n in alone}) < 1e-3
    assert differ(alone, child(read, early)) > 4e-3
    (out / "report.json").unlink()
    shutil.rmtree(late)
    done(runs[then](ran_on, recipe_in(tmp_path / "run", models, **how[then])))
    assert differ(alone, load_file(out / "model.safetensors")) < 1e-3


@pytest.mark.parametrize(
    ("task", "changes"),
    [pytest.param("causal_lm", {"evaluation__every": 2, "evaluation__enabled": True, "training__max_grad_norm": 0.5,
                                "training__gradient_accumulation": 2}, marks=WHOLE),
     pytest.param("sequence_classification", {"training__max_grad_norm": 0.5}, marks=WHOLE),
     pytest.param("causal_lm", {"model__new_tokens": ["<a>", "<b>"]}, marks=WHOLE),
     pytest.param("causal_lm", {"model__dtype": "bfloat16"}, marks=WHOLE)],
)  # fmt: skip
def test_two_processes_take_the_steps_of_one(task, changes, models, child, together, tmp_path):
    one = written(done([child(ran, recipe_in(tmp_path / "one", models, task, **changes))]))
    two = written(done(together(ran, recipe_in(tmp_path / "two", models, task, distributed="fsdp2", **changes))))
    near = 2e-2 if changes.get("model__dtype") else 2e-3
    assert one[0][0]["loss"] != one[0][-1]["loss"]
    for key in ("loss", "grad_norm"):
        assert [s[key] for s in two[0]] == pytest.approx(
            [s[key] for s in one[0]], rel=10 * near if key != "loss" else near
        )
    assert one[1].keys() == two[1].keys()
    assert all(one[1][n].dtype == two[1][n].dtype and one[1][n].shape == two[1][n].shape for n in one[1])
    assert differ(one[1], two[1]) < near
    assert not any(torch.equal(one[1][n], torch.zeros_like(one[1][n])) for n in one[1])
