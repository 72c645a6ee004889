"""Which learning rate each method wants: `python -m benchmarks.rates [--only ...] [--tasks ...] [--cells N]`.

12 methods, 5 rates, 3 seeds, runs of 40 and 150 steps, on the tasks of the MiniLM encoder; other rates, lengths and
batches as asked for. Every finished run, also one that failed, is kept in results/rates.json; called again, the command
goes on where it was stopped. At the end it prints the best rate of every method, task and length by held-out loss.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from afina.errors import AfinaError, StoppedError
from afina.evidence.candidates import candidates
from afina.plan.usage import told_seconds
from afina.train.loop.run import run
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter
from afina.train.report.results import write_json

from .timing import RESULTS

METHODS = (
    "lora", "dora", "pissa", "ia3", "bitfit", "prompt_tuning", "prefix_tuning", "bottleneck", "vera", "oft",
    "ln_tuning", "full",
)  # fmt: skip
TASKS = ("tweets-classifier", "entities", "questions")
DECODER = ("tweets",)
"""Tasks of the decoder SmolLM2, to check on what was found: only where they are named."""
FACTORS = (1.0, 3.0, 10.0, 30.0, 100.0)
UNIT: Mapping[str, float] = {
    "lora": 2e-4, "dora": 2e-4, "pissa": 2e-4, "ia3": 5e-3, "bitfit": 1e-3, "prompt_tuning": 2e-2,
    "prefix_tuning": 1e-2, "bottleneck": 1e-3, "vera": 4e-3, "oft": 1e-3, "ln_tuning": 1e-3, "full": 2e-5,
}  # fmt: skip
"""What rates are counted in: by themselves, so that runs mean the same whatever the defaults become."""
STEPS, SEEDS = (40, 150), (0, 1, 2)
HELD_OUT, DECODER_HELD_OUT = 400, 100


class Cell(NamedTuple):
    """One run; `factor` is in multiples of the method's `UNIT`, `batch` in rows (None: the recipe's)."""

    task: str
    method: str
    steps: int
    factor: float
    seed: int
    batch: int | None = None

    @property
    def key(self) -> str:
        """Its name in the file."""
        batch = f" batch={self.batch}" if self.batch else ""
        return f"{self.task} {self.method} steps={self.steps} factor={self.factor:g} seed={self.seed}{batch}"


def cells(
    methods: Sequence[str] = METHODS, tasks: Sequence[str] = TASKS, steps: Sequence[int] = STEPS,
    factors: Sequence[float] = FACTORS, batch: int | None = None,
) -> list[Cell]:  # fmt: skip
    """All runs; seeds are the outermost loop, so that a part of them has something of everything."""
    return [Cell(t, m, n, f, s, batch) for s in SEEDS for t in tasks for n in steps for f in factors for m in methods]


def measure(cell: Cell, dtype: str | None = None) -> dict[str, Any]:
    """Train and measure, a frozen base in `dtype` if one is named; a run that cannot be holds its error."""
    (candidate,) = candidates(cell.method)
    rate = cell.factor * UNIT[cell.method]
    dtype = None if cell.method == "full" else dtype
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "training.max_steps": cell.steps, "training.seed": cell.seed, "training.learning_rate": f"{rate:.3g}",
            "data.max_eval_rows": DECODER_HELD_OUT if cell.task in DECODER else HELD_OUT, "output.dir": f"{folder}/out",
        }  # fmt: skip
        if dtype:
            settings["model.dtype"] = dtype
        if cell.batch:
            settings["training.batch_size"] = cell.batch
        try:
            recipe = load_recipe(cell.task, [*candidate.overrides, *((k, str(v)) for k, v in settings.items())])
            found = run(recipe, Reporter()).report
        except StoppedError:  # by a signal: it is run again next time
            raise
        except AfinaError as error:
            return {**cell._asdict(), "rate": rate, "error": " ".join(str(error).splitlines())}
    return {
        **cell._asdict(), "rate": rate, "before": found["before"], "after": found["after"],
        "descent": found["training"]["descent"]["verdict"], "trainable": found["parameters"]["trainable"],
        "dtype": dtype, "seconds": round(time.monotonic() - started, 1),
        "versions": found["versions"],
    }  # fmt: skip


def left(todo: Sequence[Cell], done: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Seconds that the rest takes, by the finished runs of as many steps, else by all; None before the first one."""
    times = [(run["steps"], run["seconds"]) for run in done.values() if "seconds" in run]
    if not times:
        return None
    by_steps = {
        n: fmean([s for steps, s in times if steps == n] or [s for _, s in times]) for n in {c.steps for c in todo}
    }
    return sum(by_steps[cell.steps] for cell in todo)


def is_far(cell: Cell, done: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a rate of a later seed is neither the first seed's best nor beside it, of those that it was run with."""
    first = [run for run in done.values()
             if run["seed"] == SEEDS[0] and run["factor"] in FACTORS and "error" not in run
             and _group(run) == _group({**cell._asdict()})]  # fmt: skip
    if cell.seed == SEEDS[0] or not first:
        return False
    tried = sorted({run["factor"] for run in first})
    at = tried.index(min(first, key=lambda run: run["after"]["loss"])["factor"])
    return cell.factor not in tried[max(0, at - 1) : at + 2]


def best(done: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The table in Markdown; a rate at the end of those tried is marked, because a better one may lie beyond it."""
    yield "| task | method | steps | best rate | times the default | held-out loss | seeds | runs whose loss fell |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    groups = sorted({_group(run) for run in done.values()})
    for group in groups:
        runs = [run for run in done.values() if _group(run) == group]
        good = [run for run in runs if "error" not in run]
        head = " | ".join(map(str, group))
        if not good:
            yield f"| {head} | {runs[0]['error']} | | | | |"
            continue
        by_factor = {f: [run for run in good if run["factor"] == f] for f in sorted({run["factor"] for run in good})}
        most = max(map(len, by_factor.values()))  # a rate that some seeds did not survive is not the best
        losses = {f: fmean(r["after"]["loss"] for r in of) for f, of in by_factor.items() if len(of) == most}
        factor = min(losses, key=lambda f: losses[f])
        chosen = by_factor[factor]
        edge = " (at the end)" if factor in (min(losses), max(losses)) else ""
        fell = sum(run["descent"] == "fell" for run in chosen)
        yield (f"| {head} | {chosen[0]['rate']:.3g} | {factor:g}{edge} | {losses[factor]:.4f} | {len(chosen)} | "
               f"{fell} of {len(chosen)} |")  # fmt: skip


def _group(run: Mapping[str, Any]) -> tuple[str, str, int]:
    batch = f", batches of {run['batch']}" if run.get("batch") else ""
    return run["task"] + batch, run["method"], run["steps"]


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rates")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    parser.add_argument("--tasks", nargs="+", choices=(*TASKS, *DECODER), default=TASKS, metavar="RECIPE")
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS)
    parser.add_argument("--factors", nargs="+", type=float, default=FACTORS)
    parser.add_argument("--batch", type=int, help="rows a step (without it the recipe's)")
    parser.add_argument("--dtype", help="of frozen bases (without it the recipe's)")
    parser.add_argument("--near", action="store_true", help="of later seeds only the first one's best rate and those "
                        "beside it")  # fmt: skip
    parser.add_argument("--cells", type=int, help="stop after as many runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "rates.json")
    given = parser.parse_args()
    done: dict[str, Any] = json.loads(given.out.read_text(encoding="utf-8")) if given.out.is_file() else {}
    todo = [
        cell for cell in cells(given.only, given.tasks, given.steps, given.factors, given.batch) if cell.key not in done
    ]
    print(f"{len(done)} runs are kept in {given.out}, {len(todo)} to do", flush=True)
    for number, cell in enumerate(todo[: given.cells], 1):
        try:
            if given.near and is_far(cell, done):
                continue
            done[cell.key] = measure(cell, given.dtype)
        except StoppedError as stopped:
            print(f"stopped in {cell.key}; call it again to go on")
            raise SystemExit(stopped.exit_code) from stopped
        write_json(given.out, done)
        rest = left(todo[number:], done)
        what = done[cell.key].get("error") or f"held-out loss {done[cell.key]['after']['loss']:.4f}"
        print(f"{cell.key}: {what}; " + (f"about {told_seconds(rest)} left" if rest is not None else ""), flush=True)
    print("\n".join(best(done)))


if __name__ == "__main__":
    main()
