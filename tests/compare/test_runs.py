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
import json, os, sys, pathlib
for line in sys.stdin:
    folder = pathlib.Path(line.strip())
    job = json.loads((folder / "job.json").read_text())
    count = folder.parent.parent / "count"
    count.write_text((count.read_text() if count.exists() else "") + str(os.getpid()) + " ")
    print("a library's own words")
    print(json.dumps({"progress": [1, 2]}), flush=True)
    result = {"items": [1.0], "metric": "accuracy", "loss": 0.1, "total_s": 1.0, "separate": job["separate"]}
    (folder / "result.json").write_text(json.dumps({**result, "key": job["key"]}))
    print(json.dumps({"ended": None}), flush=True)
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

    made = []

    def runner(code, planned=1, devices=(), separate=False):
        script = tmp_path / "worker.py"
        script.write_text(textwrap.dedent(code))
        command = (sys.executable, str(script))
        out = Runner(tmp_path / "runs", shared, Heard(), command, devices, separate=separate)
        out.planned = planned
        made.append(out)
        return out

    yield runner
    for out in made:
        out.close()


def processes(tmp_path):
    """That of each run."""
    return (tmp_path / "count").read_text().split()


def test_finished_run_is_found_and_not_run_again(make, recipe, tmp_path):
    first = make(GOOD).run("lora seed 0", recipe, 0)
    again = make(GOOD).run("lora seed 0", recipe, 0)
    assert (first.status, first.cached, again.status, again.cached) == ("done", False, "done", True)
    assert again.result["items"] == [1.0]
    assert len(processes(tmp_path)) == 1


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
    assert len(processes(tmp_path)) == 2


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
    outcome = make("input(); raise MemoryError('no more')").run("lora seed 0", recipe, 0)
    assert outcome.status == "crashed"
    assert outcome.error.startswith("MemoryError: no more (exit code 1")
    assert make(GOOD).run("lora seed 0", recipe, 0).status == "done"


@pytest.mark.parametrize("separate", [False, True])
def test_runs_share_a_process_unless_they_are_to_have_their_own(make, recipe, tmp_path, separate):
    runner = make(GOOD, 3, separate=separate)
    runner.together([lambda seed=seed: runner.run(f"lora seed {seed}", recipe, seed) for seed in range(3)])
    assert len(set(processes(tmp_path))) == (3 if separate else 1)
    assert not any(_alive(int(pid)) for pid in processes(tmp_path))


def test_what_was_measured_in_a_shared_process_is_measured_again_for_one_of_its_own(make, recipe, tmp_path):
    for separate, cached in ((False, False), (False, True), (True, False), (True, True), (False, True)):
        assert make(GOOD, separate=separate).run("lora seed 0", recipe, 0).cached is cached
    assert len(processes(tmp_path)) == 2


def test_run_after_one_that_crashed_has_another_process(make, recipe, tmp_path):
    fail = "    if job['recipe']['training']['seed'] == 1:\n        raise ValueError('first words\\nseed one')\n"
    end = "    print(json.dumps({'ended'"
    code = GOOD.replace('"ended"', "'ended'").replace(end, fail + end)
    runner = make(code, 3)
    outcomes = [runner.run(f"lora seed {seed}", recipe, seed) for seed in range(3)]
    assert [outcome.status for outcome in outcomes] == ["done", "crashed", "done"]
    assert outcomes[1].error.startswith("ValueError: first words")
    first, second, third = processes(tmp_path)
    assert first == second != third


def test_process_that_ended_between_runs_is_a_crash_of_the_next_one_only(make, recipe, tmp_path):
    runner = make(GOOD.replace("for line in sys.stdin:", "for line in [sys.stdin.readline()]:"), 3)
    statuses = []
    for seed in range(3):
        statuses.append(runner.run(f"lora seed {seed}", recipe, seed).status)
        if seed == 0:
            runner.hands[0].process.wait()
    assert statuses == ["done", "crashed", "done"]


def test_kill_is_told_as_what_it_often_means(make, recipe):
    outcome = make("import os; input(); os.kill(os.getpid(), 9)").run("lora seed 0", recipe, 0)
    assert (outcome.status, outcome.error) == ("crashed", "killed by SIGKILL (often: out of memory)")


def test_refusal_is_told_in_the_workers_words_and_its_process_goes_on(make, recipe, tmp_path):
    first = "result = "
    code = GOOD.replace(first, "if job['recipe']['training']['seed'] == 0:\n"
                        "        print(json.dumps({'ended': 'no bias to train'}), flush=True)\n"
                        "        continue\n    result = ")  # fmt: skip
    runner = make(code)
    outcome = runner.run("bitfit seed 0", recipe, 0)
    assert (outcome.status, outcome.error) == ("refused", "no bias to train")
    assert runner.run("bitfit seed 1", recipe, 1).status == "done"
    assert len(set(processes(tmp_path))) == 1


def test_progress_and_the_time_left_are_told(make, recipe):
    runner = make(GOOD, planned=3)
    runner.run("lora seed 0", recipe, 0)
    assert runner.reporter.stages == [("1/3 lora seed 0", 1, 2)]
    assert runner.reporter.notes[0].startswith("1/3 lora seed 0: done, accuracy 1.000 in 1 s; about ")
    assert runner.reporter.notes[0].endswith(" left")


MEETING = """
import json, pathlib, sys, time
folder = pathlib.Path(input())
job = json.loads((folder / "job.json").read_text())
told = folder.parent.parent / job["recipe"]["model"]["device"]
told.write_text("x")
while len(list(told.parent.glob("cuda:*"))) < 2:
    time.sleep(0.01)
print(json.dumps({"progress": [1, 2]}), flush=True)
result = {"items": [1.0], "metric": "accuracy", "loss": 0.1, "total_s": 1.0, "at_once": job["at_once"]}
(folder / "result.json").write_text(json.dumps({**result, "key": job["key"]}))
print(json.dumps({"ended": None}), flush=True)
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
    runner = make("import time; open(input() + '/here', 'w'); time.sleep(600)", 2, ("cpu", "cpu"))

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
