"""A resumed run is the uninterrupted run, to the bit; signals end a run in good order; kills cost nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from afina.train.recipe.settings import load_recipe
from afina.train.report.checkpoints import newest_complete

from .. import tiny
from .test_run import train

STEPS = 12


def recipe(folder, model_folder, **changes):
    options = {"training__max_steps": STEPS, "training__save_steps": 1, "training__keep_checkpoints": STEPS,
               "method": {"type": "lora", "r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"},
               "evaluation__enabled": False, **changes}  # fmt: skip
    return tiny.write_recipe(folder, model_folder, **options)


def results(folder: Path):
    """Everything that training left: the adapter, and the last checkpoint's optimizer, schedule and random numbers."""
    last = folder / f"checkpoint-{STEPS}"
    parts = {n: torch.load(last / n, weights_only=False) for n in ("optimizer.pt", "scheduler.pt", "rng_state.pth")}
    return load_file(folder / "adapter_model.safetensors"), parts, (folder / "metrics.jsonl").read_text()


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool((a == b) if not hasattr(a, "shape") else (a == b).all())


def losses(metrics):
    return [
        (row["step"], row["loss"], row["grad_norm"]) for row in map(json.loads, metrics.splitlines()) if "loss" in row
    ]


def resumed_after(steps, folder, model_folder, accumulation):
    """For every k, a run that stopped after step k and was resumed, compared with the one that was not."""
    own = folder / "whole"
    own.mkdir()
    # 24 rows, batches of 4: an epoch ends in the middle of the run.
    path = recipe(own, model_folder, training__gradient_accumulation=accumulation)
    whole, _ = train(path)
    different = []
    for k in steps:
        cut = folder / f"cut{k}"
        shutil.copytree(own, cut)
        text = path.read_text().replace(str(own), str(cut))
        (cut / "tiny.yaml").write_text(text)
        out = cut / "out"
        saved = out / "recipe.yaml"
        saved.write_text(saved.read_text().replace(str(own), str(cut)))
        for left in (*out.glob("checkpoint-*"),):
            if int(left.name.split("-")[1]) > k:
                shutil.rmtree(left)
        for name in ("report.json", "adapter_model.safetensors"):
            (out / name).unlink()
        again, heard = train(cut / "tiny.yaml", resume=True)
        assert f"resuming from checkpoint-{k}" in heard.notes
        (a, parts, metrics), (b, parts_again, metrics_again) = results(whole.folder), results(again.folder)
        if not (same(a, b) and same(parts, parts_again) and losses(metrics) == losses(metrics_again)):
            different.append(k)
        shutil.rmtree(cut)
    return different


IN_AND_BETWEEN_EPOCHS = (5, 6, 11)
REST = tuple(k for k in range(1, STEPS) if k not in IN_AND_BETWEEN_EPOCHS)


@pytest.mark.parametrize(
    "steps", [IN_AND_BETWEEN_EPOCHS, pytest.param(REST, marks=pytest.mark.whole("steps between those"))], ids=str
)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_resumed_run_is_the_uninterrupted_one_to_the_bit_for_every_step(
    tmp_path, model_folder, child, accumulation, steps
):
    assert child(resumed_after, steps, tmp_path, model_folder, accumulation) == []


def start(path, *flags):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = "from afina.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, "train", str(path), *flags], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


def wait_for_step(out: Path, process):
    deadline = time.monotonic() + 120
    while newest_complete(out) is None and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert newest_complete(out) is not None, process.communicate()


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.whole("SIGTERM takes the same way"))],
)
def test_signal_finishes_the_step_saves_and_ends_with_its_code(tmp_path, model_folder, number, code):
    path = recipe(tmp_path, model_folder, training__max_steps=5000, training__keep_checkpoints=2)
    out = Path(load_recipe(str(path)).output.dir)
    process = start(path)
    wait_for_step(out, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert f"stopped by {number.name} after step" in said
    assert "Traceback" not in said
    step = int(said.split("after step ")[1].split()[0])
    assert newest_complete(out).name == f"checkpoint-{step}"


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.whole("one kill, and resumed runs above"))])
def test_killed_runs_resume_from_the_newest_complete_checkpoint(tmp_path, model_folder, kills):
    """AFINA_KILLS sets another number of kills."""
    path = recipe(tmp_path, model_folder, training__max_steps=4000, training__keep_checkpoints=3)
    out = Path(load_recipe(str(path)).output.dir)
    chance = random.Random(0)
    flags: list[str] = []
    last = 0
    for _ in range(int(os.environ.get("AFINA_KILLS", kills))):
        process = start(path, *flags)
        before = newest_complete(out)
        deadline = time.monotonic() + 120
        while newest_complete(out) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.communicate()
        found = newest_complete(out)
        assert found is not None
        step = int(found.name.split("-")[1])
        assert step > last
        load_file(found / "adapter_model.safetensors")
        last, flags = step, ["--resume"]


def test_early_stopping_keeps_the_best_checkpoint(tmp_path, model_folder, child):
    path = recipe(tmp_path, model_folder, training__max_steps=40, training__learning_rate=0.02,
                  training__early_stopping=1, evaluation__every=2, evaluation__enabled=True)  # fmt: skip
    held_out = tmp_path / "eval.jsonl"  # says the opposite: what is learnt beyond the form makes it worse
    swapped = held_out.read_text().replace("odd", "?").replace("even", "odd").replace("?", "even")
    held_out.write_text(swapped)
    result, _ = child(train, path)
    rows = [json.loads(x) for x in (result.folder / "metrics.jsonl").read_text().splitlines()]
    held = {r["step"]: r["eval_loss"] for r in rows if "eval_loss" in r}
    assert 2 < max(held) < 40
    best = min(held, key=held.get)
    kept = load_file(result.folder / "adapter_model.safetensors")
    assert same(kept, load_file(result.folder / f"checkpoint-{best}" / "adapter_model.safetensors"))
