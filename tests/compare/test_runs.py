"""The runner with workers of a few lines instead of the real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from afina.compare.runs import Runner
from afina.errors import CheckpointError
from afina.evidence.prepare import prepare
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from ..train import tiny

GOOD = """
import json, sys, pathlib
folder = pathlib.Path(sys.argv[1])
job = json.loads((folder / "job.json").read_text())
count = folder.parent.parent / "count"
count.write_text(count.read_text() + "x" if count.exists() else "x")
print("a library's own words")
print(json.dumps({"progress": [1, 2]}), flush=True)
for step, loss in ((1, 5.0), (2, 4.0)):
    print(json.dumps({"value": [step, loss]}), flush=True)
result = {"items": [1.0], "metric": "accuracy", "loss": 0.1, "total_s": 1.0, "values": [[1, 5.0], [2, 4.0]]}
(folder / "result.json").write_text(json.dumps({**result, "key": job["key"]}))
"""


class Heard(Reporter):
    def __init__(self):
        self.notes, self.stages = [], []

    def note(self, text):
        self.notes.append(text)

    def progress(self, state):
        self.stages.append((state.stage, state.done, state.total))


@pytest.fixture
def recipe(tmp_path, model_folder):
    return load_recipe(str(tiny.write_recipe(tmp_path, model_folder)))


@pytest.fixture
def make(tmp_path, recipe):
    shared = prepare(recipe, tmp_path / "data", Reporter())

    def runner(code, planned=1, devices=()):
        script = tmp_path / "worker.py"
        script.write_text(textwrap.dedent(code))
        out = Runner(tmp_path / "runs", shared, Heard(), (sys.executable, str(script)), devices)
        out.planned = planned
        return out

    return runner


def times_run(tmp_path):
    return len((tmp_path / "count").read_text())


def test_finished_run_is_found_and_not_run_again(make, recipe, tmp_path):
    first = make(GOOD).run("lora seed 0", recipe, 0)
    again = make(GOOD).run("lora seed 0", recipe, 0)
    assert (first.status, first.cached, again.status, again.cached) == ("done", False, "done", True)
    assert again.result["items"] == [1.0]
    assert again.values == first.values == ((1, 5.0), (2, 4.0))
    assert times_run(tmp_path) == 1


@pytest.mark.parametrize("change", ["seed", "rate", "method", "rows", "weights"])
def test_run_is_repeated_where_anything_that_matters_changed(make, recipe, tmp_path, change):
    make(GOOD).run("lora seed 0", recipe, 0)
    runner, other, seed = make(GOOD), recipe.model_copy(deep=True), 0
    if change == "seed":
        seed = 1
    elif change == "rate":
        other.training.learning_rate = 0.02
    elif change == "method":
        other.method.model_extra["r"] = 4
    elif change == "rows":
        with runner.shared.train.open("a") as file:
            file.write('{"text": "n7", "label": "odd"}\n')
    else:
        runner.shared.facts["model"] = {"model.safetensors": "another"}
    assert not runner.run("lora seed 0", other, seed).cached
    assert times_run(tmp_path) == 2


def test_output_folder_does_not_matter(make, recipe, tmp_path):
    make(GOOD).run("lora seed 0", recipe, 0)
    other = recipe.model_copy(deep=True)
    other.output.dir = "elsewhere"
    assert make(GOOD).run("lora seed 0", other, 0).cached


def test_edited_result_is_refused(make, recipe, tmp_path):
    make(GOOD).run("lora seed 0", recipe, 0)
    (path,) = tmp_path.glob("runs/*/result.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "key": {"other": 1}}))
    with pytest.raises(CheckpointError, match="not what its name says"):
        make(GOOD).run("lora seed 0", recipe, 0)


def test_crash_is_an_outcome_with_its_error_and_is_tried_again(make, recipe):
    outcome = make("raise MemoryError('no more')").run("lora seed 0", recipe, 0)
    assert outcome.status == "crashed"
    assert outcome.error.startswith("MemoryError: no more (exit code 1")
    assert make(GOOD).run("lora seed 0", recipe, 0).status == "done"


def test_kill_is_told_as_what_it_often_means(make, recipe):
    outcome = make("import os; os.kill(os.getpid(), 9)").run("lora seed 0", recipe, 0)
    assert (outcome.status, outcome.error) == ("crashed", "killed by SIGKILL (often: out of memory)")


def test_refusal_is_told_in_the_workers_words(make, recipe):
    code = 'import sys; print(\'{"refused": "no bias to train"}\'); sys.exit(2)'
    outcome = make(code).run("bitfit seed 0", recipe, 0)
    assert (outcome.status, outcome.error) == ("refused", "no bias to train")


def test_trial_that_is_stopped_is_killed_and_remembered(make, recipe):
    slow = GOOD.replace("result =", "import time; time.sleep(600); result =")
    began = time.monotonic()
    outcome = make(slow).run("lora trial 1", recipe, 0, trial=True, stop=lambda step, loss: step == 2)
    assert time.monotonic() - began < 300
    assert (outcome.status, outcome.values) == ("pruned", ((1, 5.0), (2, 4.0)))
    again = make(slow).run("lora trial 1", recipe, 0, trial=True)
    assert (again.status, again.cached, again.values) == ("pruned", True, outcome.values)


def test_progress_and_the_time_left_are_told(make, recipe):
    runner = make(GOOD, planned=3)
    runner.run("lora seed 0", recipe, 0)
    assert runner.reporter.stages == [("1/3 lora seed 0", 1, 2)]
    assert runner.reporter.notes[0].startswith("1/3 lora seed 0: done, accuracy 1.000 in 1 s; about ")
    assert runner.reporter.notes[0].endswith(" left")


MEETING = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
job = json.loads((folder / "job.json").read_text())
told = folder.parent.parent / job["recipe"]["model"]["device"]
told.write_text("x")
while len(list(told.parent.glob("cuda:*"))) < 2:
    time.sleep(0.01)
print(json.dumps({"progress": [1, 2]}), flush=True)
result = {"items": [1.0], "metric": "accuracy", "loss": 0.1, "total_s": 1.0, "at_once": job["at_once"]}
(folder / "result.json").write_text(json.dumps({**result, "key": job["key"]}))
"""


def test_runs_at_once_have_a_device_each_and_are_found_again_by_one_alone(make, recipe, tmp_path):
    runner, found = make(MEETING, planned=2, devices=("cuda:0", "cuda:1")), {}
    runner.together([lambda seed=seed: found.update({seed: runner.run(f"lora seed {seed}", recipe, seed)})
                     for seed in (0, 1)])  # fmt: skip
    assert {seed: outcome.status for seed, outcome in found.items()} == {0: "done", 1: "done"}
    assert [outcome.result["at_once"] for outcome in found.values()] == [2, 2]
    assert sorted(note.partition(" ")[0] for note in runner.reporter.notes) == ["1/2", "2/2"]
    assert runner.reporter.stages == []
    assert make(MEETING).run("lora seed 1", recipe, 1).cached


def test_what_one_of_the_runs_at_once_raises_ends_the_others(make, recipe, tmp_path):
    runner = make("import sys, time; open(sys.argv[1] + '/here', 'w'); time.sleep(600)", 2, ("cpu", "cpu"))

    def fail():
        while not list(tmp_path.glob("runs/*/here")):
            time.sleep(0.01)
        raise CheckpointError("asked for")

    began = time.monotonic()
    with pytest.raises(CheckpointError, match="asked for"):
        runner.together([lambda: runner.run("lora seed 0", recipe, 0), fail])
    assert time.monotonic() - began < 60
    assert runner.reporter.notes == []
    assert not list(tmp_path.glob("runs/*/result.json"))


def test_trial_never_sees_the_held_out_rows(make, recipe):
    runner = make(GOOD)
    job = runner.shared.placed(recipe, 0, runner.folder, trial=True)
    lines = {name: set(Path(path).read_text().splitlines()) for name, path in
             {"train": job.data.train, "judge": job.data.eval, "test": runner.shared.held_out}.items()}  # fmt: skip
    assert len(lines["train"]) + len(lines["judge"]) == len(lines["train"] | lines["judge"]) == 24
    assert not lines["test"] & (lines["train"] | lines["judge"])


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_worker_ends_with_the_process_that_started_it(tmp_path):
    """A comparison that is killed leaves no training behind that would go on by itself."""
    code = """
    import os, subprocess, sys, time
    child = "import os, threading, time; from afina.compare.worker import _end_with;" \\
            "threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start(); print(1, flush=True);" \\
            "time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
    process.stdout.readline()
    print(process.pid, flush=True)
    time.sleep(600)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(600):
        if not _alive(pid):
            break
        time.sleep(0.1)
    assert not _alive(pid)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[:1] != ["Z"]
