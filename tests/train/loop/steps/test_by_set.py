"""The training loss of each data set is that of its rows, whatever takes it, and costs no second pass."""

from __future__ import annotations

import json
import shutil
from math import exp
from pathlib import Path

import pytest
import torch

from afina.kernels.listening import heard_by, tell
from afina.train.loop.steps.by_set import by_set
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter
from afina.train.report.results import told_by_set

from ... import tiny

# Nothing moves, so that the loss after training is that of its one step.
STILL = {"learning_rate": 1e-12, "batch_size": 9, "max_steps": 1, "save_steps": 1}
CASES = {
    "fused loss": {"task": "causal_lm"},
    "loss of the library": {"task": "causal_lm", "fast": False},
    "rows share a sequence": {"task": "causal_lm", "packing": True, "max_length": 40},
    "virtual tokens": {"task": "causal_lm", "method": {"type": "prompt_tuning", "num_virtual_tokens": 3}},
    "documents": {"task": "pretraining"},
    "encoder and decoder": {"task": "seq2seq"},
    "classes": {"task": "sequence_classification"},
    "tags": {"task": "token_classification"},
    "spans": {"task": "extractive_qa"},
    "images": {"task": "image_classification"},
    "sounds": {"task": "audio_classification"},
    "speech": {"task": "speech_recognition"},
}
# Losses of whole rows, told of a second step: a fresh adapter judges no pair.
OF_ROWS = {
    "pairs": {"task": "preference"},
    "pairs, virtual tokens": {"task": "preference", "method": {"type": "prompt_tuning", "num_virtual_tokens": 3}},
    "odds": {"task": "orpo"},
    "scores": {"task": "reward"},
    "texts": {"task": "embeddings"},
}


def sets_of(folder: Path, task: str) -> list[dict]:
    out = []
    for name, n, start in (("a", 6, 0), ("b", 3, 51)):
        rows = [json.dumps(row) for row in tiny.task_rows(task, n, start)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
        out.append({"path": str(folder / f"{name}.jsonl")})
    return out


def recipe_of(folder: Path, models: dict[str, Path], task: str, **changes):
    encoder = folder / "encoder"  # a loss with dropout is another one every time
    shutil.copytree(models["encoder"], encoder)
    config = json.loads((encoder / "config.json").read_text())
    off = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    (encoder / "config.json").write_text(json.dumps({**config, **off}))
    sets = sets_of(folder, task)
    own = {"data__train": sets, "data__eval": sets, **{f"training__{key}": value for key, value in STILL.items()}}
    return load_recipe(str(tiny.write_task(folder, task, {**models, "encoder": encoder}, **{**own, **changes})))


def ran(recipe):
    """The metrics, the report, the card and what was said."""
    from afina.train.loop.run import run

    said = []

    class Heard(Reporter):
        def note(self, text):
            said.append(text)

    done = run(recipe, Heard())
    lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    return lines, done.report, (done.folder / "README.md").read_text(), said


@pytest.mark.sampled(3, "tasks of one kind take the same way")
@pytest.mark.parametrize("case", CASES)
def test_loss_of_a_set_is_the_mean_over_its_rows(tmp_path, models, child, case):
    given = dict(CASES[case])
    sections = {"fast": "training", "packing": "training", "max_length": "data"}
    changes = {f"{sections[k]}__{k}": given[k] for k in given if k in sections}
    if "method" in given:
        changes["method"] = given["method"]
    lines, report, card, said = child(ran, recipe_of(tmp_path, models, given["task"], **changes))
    step = next(line for line in lines if "loss" in line)
    told = {name: step[f"loss/{name}"] for name in ("a", "b")}
    if case == "spans":  # whose loss is over the padding too, which is another in every batch
        assert (6 * told["a"] + 3 * told["b"]) / 9 == pytest.approx(step["loss"], rel=1e-5)
    else:
        assert told == pytest.approx(report["after"]["sets"], rel=2e-4)
    assert abs(told["a"] - told["b"]) > 1e-3
    assert report["training"]["sets"] == {name: {"first": loss, "last": loss} for name, loss in told.items()}
    words = told_by_set(report["training"]["sets"])
    assert f"training loss by data set: {words}" in said
    assert f"at the end: {words}." in card


MOVED = {"learning_rate": 0.05, "scheduler": "constant"}


def ran_twice(recipe):
    """The report of a run of one step that moves, and the metrics and what was said of one of two such steps."""
    from afina.train.loop.run import run

    one, two = (recipe.training.model_copy(update={**MOVED, "max_steps": steps}) for steps in (1, 2))
    after = run(recipe.model_copy(update={"training": one}), Reporter()).report["after"]
    output = recipe.output.model_copy(update={"dir": f"{recipe.output.dir}-two"})
    lines, _, _, said = ran(recipe.model_copy(update={"training": two, "output": output}))
    return after, [line for line in lines if "loss" in line][1], said


@pytest.mark.parametrize("case", OF_ROWS)
def test_loss_of_whole_rows_is_that_of_a_sets_own(tmp_path, models, child, case):
    given = dict(OF_ROWS[case])
    after, step, said = child(ran_twice, recipe_of(tmp_path, models, given.pop("task"), **given))
    told = {name: step[f"loss/{name}"] for name in ("a", "b")}
    assert told == pytest.approx(after["sets"], rel=2e-4)
    assert abs(told["a"] - told["b"]) > 1e-4
    assert not any("told of all data sets together" in text for text in said)
    if case != "odds":  # whose loss of the written answers is the mean over a batch's tokens, not over rows
        assert (6 * told["a"] + 3 * told["b"]) / 9 == pytest.approx(step["loss"], rel=1e-4)


def test_loss_of_good_and_bad_answers_is_each_ones_weighted_one(tmp_path, models, child):
    """Of one good row and a bad one that comes twice, whose rewards TRL tells by themselves."""
    recipe = recipe_of(tmp_path, models, "kto", training__batch_size=3, training__beta=0.5)
    for name, row in (("a", (True, "n2", "even")), ("b", (False, "n7", "even"))):
        values = dict(zip(("label", "prompt", "completion"), row, strict=True))
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(values))
    sets = [one.model_copy(update={"weight": weight}) for one, weight in zip(recipe.data.train, (1, 2), strict=True)]
    data = recipe.data.model_copy(update={"train": sets})
    _, step, _ = child(ran_twice, recipe.model_copy(update={"data": data}))
    point, good, bad = recipe.training.beta * step["kl"], step["rewards/chosen"], step["rewards/rejected"]
    assert good != pytest.approx(bad, rel=0.01)
    expected = {"a": 2 / (1 + exp(good - point)), "b": 1 / (1 + exp(point - bad))}
    assert {name: step[f"loss/{name}"] for name in ("a", "b")} == pytest.approx(expected, rel=1e-5)
    assert (expected["a"] + 2 * expected["b"]) / 3 == pytest.approx(step["loss"], rel=1e-5)


def test_answers_that_are_drawn_are_said_to_have_one_loss(tmp_path, models, child):
    lines, report, _, said = child(ran, recipe_of(tmp_path, models, "grpo", training__batch_size=4))
    assert "sets" not in report["training"]
    assert not any(key.startswith("loss/") for line in lines for key in line)
    assert any("told of all data sets together" in line for line in said)


def test_rows_without_a_trained_token_and_sets_that_did_not_come_are_left_out():
    history = [{"step": n, "loss": 1.0, "loss/a": 8.0 - n} for n in range(8)] + [{"step": 8, "loss/b": 1.0}]
    assert by_set(history) == {"a": {"first": 7.5, "last": 1.5}, "b": {"first": 1.0, "last": 1.0}}
    assert by_set([{"loss": 1.0}]) is None


def test_losses_are_told_to_who_listens_and_only_then():
    heard = []
    with heard_by(lambda *found: heard.append(found)):
        tell(torch.tensor([1]), torch.tensor([2.0], requires_grad=True), 3)
    tell(torch.tensor([4]), torch.tensor([5.0]), 6)
    ((rows, losses, positions),) = heard
    assert (rows.tolist(), losses.tolist(), positions, losses.requires_grad) == ([1], [2.0], 3, False)
