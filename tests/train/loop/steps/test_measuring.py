"""The held-out loss of several processes is that of one, and each makes a part of it."""

from __future__ import annotations

import json

import pytest

from afina.devices.ranks import cut
from afina.train.loop.run import run
from afina.train.loop.steps.measuring import _Batches
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter
from afina.train.tasks import TASKS

from ....reference import cuts_here
from ... import tiny

WHOLE = pytest.mark.whole("language models and classifiers take the same way")
OTHERS = ("sequence_classification", "token_classification", "preference")


class Counting(Reporter):
    """Counts the passes through the model that train nothing."""

    def __init__(self):
        self.passes = 0

    def reached(self, stage, parts):
        if stage == "ready":
            parts["trainer"].model.register_forward_hook(self.count)

    def count(self, model, args, output):
        self.passes += not model.training


def measured(recipe):
    reporter = Counting()
    done = run(recipe, reporter)
    lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    kept = ("eval_loss", "eval_accuracy")
    on_the_way = [{k: line[k] for k in kept if k in line} for line in lines if "eval_loss" in line]
    return [done.before.as_dict(), *on_the_way, done.after.as_dict()], reporter.passes


@pytest.mark.parametrize(
    ("task", "distributed"),
    [("causal_lm", "ddp"), *(pytest.param(t, "ddp", marks=WHOLE) for t in OTHERS),
     *(pytest.param(t, "fsdp2", marks=WHOLE) for t in ("causal_lm", *OTHERS)),
     pytest.param("causal_lm", "tp", marks=[WHOLE, cuts_here])],
)  # fmt: skip
def test_two_processes_measure_what_one_does_with_fewer_passes(task, distributed, models, child, together, tmp_path):
    found = []
    for number, work in enumerate((lambda *a: [child(*a)], together)):
        folder = tmp_path / str(number)
        folder.mkdir()
        file = tiny.write_task(folder, task, models, training__max_steps=2, evaluation__every=1, data__labels=None,
                               evaluation__batch_size=2, distributed=distributed if number else "ddp",
                               training__learning_rate=1e-3, training__gradient_checkpointing=False)  # fmt: skip
        done = work(measured, load_recipe(str(file)))
        assert not [d for d in done if isinstance(d, Exception)], done
        found.append(done)
    ((alone, passes),), ((first, first_passes), (second, second_passes)) = found
    assert len(alone) >= 4
    steps_differ = 1e-4 if TASKS[task].shares == "exactly" else 1e-2
    assert first == second
    for here, there in zip(alone, first, strict=True):
        assert {k: v for k, v in there.items() if isinstance(v, float)} == pytest.approx(
            {k: v for k, v in here.items() if isinstance(v, float)}, rel=1e-4 if here is alone[0] else steps_differ
        )
    assert first_passes == second_passes
    if distributed == "tp":  # each has a part of every layer
        assert first_passes == passes
    elif task == "preference":  # TRL's own loop measures whole
        assert first_passes < passes
    else:  # 5 batches of 2 rows: 3 for each, the last of which one of them does for nothing
        assert first_passes == passes * 3 // 5


def batches_of(rows, shared):
    from afina.devices.found import processor
    from afina.devices.ranks import joined

    with joined(processor()):
        assert not cut()
        made = _Batches(rows, 2, shared)
        return list(made), list(made.own), made.count


def test_each_batch_is_done_by_one_process_and_all_do_equally_many(together):
    (first, own, count), (second, others, _) = together(batches_of, 5, True)
    assert (first, second) == ([[0, 1], [4]], [[2, 3], [0, 1]])
    assert (own, others, count) == ([0, 2], [1, 3], 3)
    assert [made for made, _, _ in together(batches_of, 5, False)] == [[[0, 1], [2, 3], [4]]] * 2
    assert batches_of(5, True)[0] == [[0, 1], [2, 3], [4]]
