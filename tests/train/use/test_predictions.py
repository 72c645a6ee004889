"""Predictions of several processes are those of one, for every task."""

from __future__ import annotations

from pathlib import Path

import pytest

from afina.devices.found import processor
from afina.devices.ranks import joined
from afina.train.data.formats import recognise
from afina.train.data.rows import read_rows
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter
from afina.train.tasks import TASKS

from .. import tiny

WHOLE = pytest.mark.whole("a classifier's rows take the same way; tests/cli/test_use.py has a language model's")


class Heard(Reporter):
    """The passes through the model, and how far it was said to be."""

    def __init__(self):
        self.done, self.passes = [], 0

    def progress(self, state):
        self.done.append((state.done, state.total))

    def count(self, *_):
        self.passes += 1


def predicted(folder, file):
    from afina.train.use.predictions import predict
    from afina.train.use.trained import load_trained

    heard = Heard()
    with joined(processor()):
        trained = load_trained(folder, Reporter(), device="cpu")
        trained.model.register_forward_hook(heard.count)
        rows, _ = recognise(read_rows(file))
        done = predict(trained, rows, heard, batch_size=2, max_new_tokens=4)
    return done.rows, done.scores and done.scores.as_dict(), heard.passes, heard.done


def trained(recipe):
    from afina.train.loop.run import run

    return run(recipe, Reporter()).folder


@pytest.mark.parametrize("task", [t if t == "sequence_classification" else pytest.param(t, marks=WHOLE) for t in TASKS])
def test_two_processes_predict_what_one_does(task, models, child, together, tmp_path):
    file = tiny.write_task(tmp_path, task, models, training__max_steps=2, evaluation__enabled=False)
    folder: Path = child(trained, load_recipe(str(file)))
    rows, scores, passes, done = child(predicted, folder, tmp_path / "held-out.jsonl")
    both = together(predicted, folder, tmp_path / "held-out.jsonl")
    assert not [d for d in both if isinstance(d, Exception)], both
    for again, told, own, heard in both:
        assert len(again) == len(rows) == 10
        assert [row.keys() for row in again] == [row.keys() for row in rows]
        assert all(near(row, other) for row, other in zip(again, rows, strict=True))
        assert told == scores if scores is None else near(told, scores)
        assert own < passes or not passes
        assert all(now <= total for now, total in heard)
        assert heard[-1:] == done[-1:]


def near(row, other):
    return all(other[k] == (pytest.approx(v, abs=2e-5) if isinstance(v, (float, list)) and numbers(v) else v)
               for k, v in row.items())  # fmt: skip


def numbers(value):
    return isinstance(value, float) or all(isinstance(v, float) for v in value)
