"""`--processes N`: what is told, and what the command ends with, however one of the processes ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from afina.cli import launch
from afina.cli.launch import Started
from afina.train.report.checkpoints import newest_complete

from ..train import tiny
from ..train.child import command


def start(*codes):
    """Processes that run these lines; the first one speaks for itself."""
    out = []
    for number, code in enumerate(codes):
        words = tempfile.TemporaryFile() if number else None  # noqa: SIM115 - the launcher reads it
        process = subprocess.Popen([sys.executable, "-S", "-c", code], stderr=words)
        out.append(Started(process, words))
    return out


FINE, WAITS = "pass", "import time; time.sleep(60)"


def test_all_well_is_well(capsys):
    assert launch._watch(start(FINE, FINE)) == 0
    assert capsys.readouterr().err == ""


def test_one_that_dies_ends_the_others_soon_and_is_told_with_its_error(monkeypatch, capsys):
    monkeypatch.setattr(launch, "PATIENCE", 0.2)
    failing = r"import sys; print('x\nerror: no room\nfix: make some', file=sys.stderr); sys.exit(2)"
    running, began = start(WAITS, failing), time.monotonic()
    assert launch._watch(running) == 2
    assert time.monotonic() - began < 5
    said = capsys.readouterr().err
    assert said.startswith("process 1 of 2 died (exit code 2)")
    assert "  error: no room\n  fix: make some\n" in said
    assert "  x\n" not in said
    assert "--resume" in said
    running[0].process.kill()


def test_one_that_is_killed_gives_what_shells_give(monkeypatch, capsys):
    monkeypatch.setattr(launch, "PATIENCE", 0.2)
    running = start(WAITS, "import os; os.kill(os.getpid(), 9)")
    assert launch._watch(running) == 137
    assert "killed by SIGKILL" in capsys.readouterr().err
    running[0].process.kill()


def test_what_the_first_one_says_is_not_said_again(capsys):
    assert launch._watch(start("import sys; sys.exit(2)", "import time; time.sleep(1)")) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("code", [2, 143])
def test_what_all_end_with_is_told_by_the_first_one_alone(code, capsys):
    assert (
        launch._watch(start(f"import time, sys; time.sleep(0.3); sys.exit({code})", f"import sys; sys.exit({code})"))
        == code
    )
    assert capsys.readouterr().err == ""


def test_launching_twice_is_refused(model_folder, tmp_path, child):
    code, _, said = child(within_another, str(tiny.write_recipe(tmp_path, model_folder)))
    assert code == 2
    assert "one of several already" in said


def within_another(recipe):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "4")
        return command("train", recipe, "--processes", "2")


@pytest.mark.whole("tests/train/loop/test_together.py shares runs without starting processes")
def test_a_run_of_two_processes_survives_the_death_of_one(tmp_path, model_folder):
    path = tiny.write_recipe(tmp_path, model_folder, training__max_steps=150, training__save_steps=1,
                             training__keep_checkpoints=2, evaluation__enabled=False)  # fmt: skip
    words = [sys.executable, "-m", "afina", "train", str(path), "--processes", "2"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while newest_complete(tmp_path / "out") is None and time.monotonic() < deadline:
        time.sleep(0.1)
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(listed.split()[1]), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 137, said
    assert "process 1 of 2 died (killed by SIGKILL)" in said
    step = int(newest_complete(tmp_path / "out").name.removeprefix("checkpoint-"))
    assert step < 150
    done = subprocess.run([*words, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 151))
