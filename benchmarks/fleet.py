"""Many LoRA runs on one base, at once and one after the other: `python -m benchmarks.fleet [--runs 16] [--steps 6]`.

Ranks 4 to 64 at four rates, on SmolLM2-135M and the tweets. Both ways are processes of their own, in turns; kept are
the shortest times and the largest resident memory of each, and how far the adapters are apart.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .timing import RESULTS

RANKS, RATES = (4, 8, 16, 64), (2e-4, 5e-4, 1e-3, 2e-3)


def recipes(folder: Path, runs: int, steps: int) -> list[Any]:
    """The candidates."""
    from afina.train.recipe.settings import load_recipe

    grid = [(rank, rate) for rate in RATES for rank in RANKS][:runs]
    return [
        load_recipe(
            "tweets",
            [("method.r", str(rank)), ("learning_rate", str(rate)), ("max_steps", str(steps)), ("batch_size", "4"),
             ("evaluation.enabled", "false"), ("output.dir", str(folder / f"r{rank}-{rate:g}"))],
        )
        for rank, rate in grid
    ]  # fmt: skip


def train(how: str, folder: Path, runs: int, steps: int) -> dict[str, float]:
    """Train all candidates; seconds and MiB."""
    from afina import train_many
    from afina.train.loop.run import run
    from afina.train.report.events import Reporter

    todo = recipes(folder, runs, steps)
    started = time.monotonic()
    if how == "together":
        found = train_many(todo)
        assert all(one.error is None and not one.alone for one in found)
    else:
        for recipe in todo:
            run(recipe, Reporter())
    return {"seconds": time.monotonic() - started, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def apart(one: Path, other: Path) -> float:
    """The largest difference of any two adapters' numbers, as a share of the largest number."""
    from safetensors.torch import load_file

    worst = 0.0
    for file in one.glob("*/adapter_model.safetensors"):
        mine, theirs = load_file(file), load_file(other / file.parent.name / file.name)
        largest = max(float(t.abs().max()) for t in mine.values())
        worst = max(worst, *(float((mine[k] - theirs[k]).abs().max()) / largest for k in mine))
    return worst


def measure(runs: int, steps: int, times: int) -> dict[str, Any]:
    """Both ways by turns."""
    found: dict[str, list[dict[str, float]]] = {"together": [], "alone": []}
    with tempfile.TemporaryDirectory() as work:
        for turn in range(times):
            for how, done in found.items():
                folder = Path(work) / f"{how}-{turn}"
                words = [sys.executable, "-m", "benchmarks.fleet", "--child", how, "--into", str(folder)]
                out = subprocess.run([*words, "--runs", str(runs), "--steps", str(steps)], capture_output=True,
                                     text=True, check=True)  # fmt: skip
                done.append(json.loads(out.stdout.splitlines()[-1]))
                print(turn, how, done[-1], flush=True)
        differ = apart(Path(work) / "together-0", Path(work) / "alone-0")
    best = {how: {"seconds": min(d["seconds"] for d in done), "mib": max(d["mib"] for d in done)}
            for how, done in found.items()}  # fmt: skip
    ratio = best["together"]["seconds"] / best["alone"]["seconds"]
    return {"runs": runs, "steps": steps, **best, "time_ratio": round(ratio, 3), "apart": differ}


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet")
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--child", choices=("together", "alone"), help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args(given)
    if words.child:
        print(json.dumps(train(words.child, words.into, words.runs, words.steps)))
        return
    found = measure(words.runs, words.steps, words.times)
    print(json.dumps(found, indent=2))
    (RESULTS / "fleet.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
