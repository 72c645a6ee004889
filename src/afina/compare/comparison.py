"""A comparison from end to end: search, run, score, tell; and its result as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from ..core.files.overwriting import refuse_occupied
from ..devices.place import apart
from ..errors import RecipeError
from ..evidence.candidates import Candidate, candidates, recipe_for
from ..evidence.items import ACCURACY
from ..evidence.prepare import Shared, prepare
from ..evidence.score import Standing, is_worse, recommend, standings, was_trained
from ..train.loop.adapt import fill_rate
from ..train.recipe.sections import Recipe
from ..train.recipe.settings import load_recipe, method_config
from ..train.report.events import Reporter
from .rate_search import FACTORS, Tried, at_rate, search
from .runs import Outcome, Runner

_FULL = "full"


@dataclass(frozen=True)
class Request:
    """What the command line asks for; `overrides` are the recipe's own, `tune` is how many rates are tried for each
    method (0: none), `out` the folder of everything, `parallel` how many runs are made at once, `separate` whether each
    has a process of its own."""

    source: str
    methods: str
    overrides: tuple[tuple[str, str], ...] = ()
    seeds: int = 3
    ranks: tuple[int, ...] = ()
    tune: int = 5
    max_steps: int | None = None
    out: Path | None = None
    parallel: int = 1
    separate: bool = False


@dataclass
class Entry:
    """A candidate on its way through the comparison."""

    candidate: Candidate
    recipe: Recipe
    rate_from: str
    outcomes: dict[int, Outcome]
    search: Tried | None = None


def compare(request: Request, reporter: Reporter) -> tuple[Path, dict[str, Any]]:
    """Run what is missing and return the folder and the comparison.

    Raises:
        AfinaError: the recipe, a method's name or a setting is wrong. A method that cannot be trained is no error but
            a row that says why.
    """
    base = load_recipe(request.source, request.overrides)
    entries = []
    for candidate in candidates(request.methods, request.ranks):
        recipe, rate_from = recipe_for(request.source, request.overrides, candidate, request.max_steps)
        entries.append(Entry(candidate, recipe, rate_from, {}))
    if request.max_steps is not None:
        base.training.max_steps = request.max_steps
    folder = request.out or Path(f"{base.output.dir}-comparison")
    refuse_occupied(folder, "a comparison", (folder / "data").is_dir(), overwrite=True)
    devices = apart(base.model.device, request.parallel, "--parallel") if request.parallel > 1 else []
    shared = prepare(base, folder / "data", reporter, request.parallel)
    for entry in entries:
        fill_rate(entry.recipe, shared.rows[0], reporter)
    runner = Runner(folder / "runs", shared, reporter, devices=devices, separate=request.separate)
    if tuned := [entry for entry in entries if request.tune and not entry.candidate.learning_rate_given]:
        _tune(tuned, request.tune, base.training.seed + request.seeds, shared, folder / "rates", reporter)
    _run_all(entries, runner, request, base.training.seed)
    return folder, _summary(base, request, shared, entries)


def _tune(entries: Sequence[Entry], count: int, seed: int, shared: Shared, folder: Path, reporter: Reporter) -> None:
    """Take for each method the best of some rates; `seed` is none that is measured, which the choice would flatter."""
    recipes = {entry.candidate.name: entry.recipe for entry in entries}
    for name, tried in search(recipes, count, seed, shared, folder, reporter).items():
        entry = next(entry for entry in entries if entry.candidate.name == name)
        entry.search = tried
        if tried.best is not None:
            entry.recipe, entry.rate_from = at_rate(entry.recipe, tried.best), "tuned"
            reporter.note(f"{name}: learning rate {tried.best:g} of {len(tried.trials)} that were tried")


def _run_all(entries: Sequence[Entry], runner: Runner, request: Request, first_seed: int) -> None:
    runner.planned = len(entries) * request.seeds

    def train(entry: Entry, seed: int) -> None:
        before = entry.outcomes.get(first_seed)
        if before is not None and before.status == "refused":
            runner.skip()  # it would be refused again
        else:
            entry.outcomes[seed] = runner.run(f"{entry.candidate.name} seed {seed}", entry.recipe, seed)

    seeds = range(first_seed, first_seed + request.seeds)
    # By seed first: a comparison that is cut off has something of every method.
    runner.together([partial(train, entry, seed) for seed in seeds for entry in entries])
    for entry in entries:  # those of runs at once came in another order
        first = entry.outcomes.get(first_seed)
        refused = first is not None and first.status == "refused"
        entry.outcomes = {s: o for s, o in sorted(entry.outcomes.items()) if s == first_seed or not refused}


def _summary(base: Recipe, request: Request, shared: Shared, entries: Sequence[Entry]) -> dict[str, Any]:
    seeds = list(range(base.training.seed, base.training.seed + request.seeds))
    done = {e.candidate.name: {s: o.result for s, o in e.outcomes.items() if o.status == "done"} for e in entries}
    finished = {name: results for name, results in done.items() if results}
    metric = next((r["metric"] for results in finished.values() for r in results.values()), ACCURACY)
    higher = metric == ACCURACY
    best = ""
    standing: dict[str, Standing] = {}
    if finished:
        scores = {name: {seed: r["items"] for seed, r in results.items()} for name, results in finished.items()}
        trained = [name for name, results in finished.items() if _trained(results) is not False]
        full = _FULL if _FULL in finished else None
        best, standing = standings(scores, higher_is_better=higher, full=full, among=trained)
    rows = [_row(entry, done[entry.candidate.name], standing.get(entry.candidate.name), seeds, higher)
            for entry in entries]  # fmt: skip
    good = sorted((row for row in rows if row["status"] == "done"), key=lambda row: row["quality"]["mean"])
    good = good[::-1] if higher else good
    rows = [*good, *(row for row in rows if row["status"] != "done")]
    floor = shared.majority if higher else None
    at_once = max((r.get("at_once", 1) for results in done.values() for r in results.values()), default=1)
    advice = recommend(good, best, metric=metric, floor=floor, timed=at_once == 1) if good else None
    return {
        "recipe": request.source, "overrides": [f"{k}={v}" for k, v in request.overrides], "task": base.task,
        "base_model": base.model.path, "metric": metric, "higher_is_better": higher, "majority": shared.majority,
        "seeds": seeds, "steps": shared.steps, "at_once": at_once,
        "separate": all(r.get("separate", True) for results in done.values() for r in results.values()),
        "rows_per_step": base.training.batch_size * base.training.gradient_accumulation,
        "train_rows": shared.rows[0], "held_out_rows": shared.rows[1],
        "tune": {"trials": request.tune, "train_rows": shared.rows[2], "held_out_rows": shared.rows[3]}
        if request.tune else None,
        "best": best, "recommended": advice.name if advice else "",
        "recommendation": advice.sentence if advice else "No method could be trained.",
        "rows": rows, **shared.facts,
    }  # fmt: skip


def _row(
    entry: Entry, results: dict[int, Any], standing: Standing | None, seeds: Sequence[int], higher: bool
) -> dict[str, Any]:
    errors = {str(seed): o.error for seed, o in entry.outcomes.items() if o.error}
    row: dict[str, Any] = {
        "name": entry.candidate.name, "method": entry.recipe.method.type, "family": _family(entry.recipe),
        "settings": entry.recipe.method.fields, "learning_rate": entry.recipe.training.learning_rate,
        "learning_rate_from": entry.rate_from, "search": asdict(entry.search) if entry.search else None,
        "status": "done" if results else next(iter(entry.outcomes.values())).status,
        "errors": errors, "seeds": sorted(results), "complete": len(results) == len(seeds),
    }  # fmt: skip
    if standing is None:
        return row
    each = list(results.values())
    first = each[0]
    forgetting = [r["forgetting"] for r in each if r["forgetting"]["after"] is not None]
    return row | {
        "quality": asdict(standing.quality),
        "to_best": asdict(standing.to_best) if standing.to_best else None,
        "to_full": asdict(standing.to_full) if standing.to_full else None,
        "worse": is_worse(standing.to_best, higher_is_better=higher),
        "trained": _trained(results),
        "rate_to_try": next((r["descent"]["rate_to_try"] for r in each if _told_not_to_fall(r)), None),
        "by_seed": {str(seed): fmean(r["items"]) for seed, r in results.items()},
        "loss": fmean(r["loss"] for r in each),
        "trainable": first["trainable"], "share": first["trainable"] / first["base_parameters"],
        "memory_mb": max(r["memory_mb"] for r in each), "cpu_s": min(r["cpu_s"] for r in each),
        "wall_s": min(r["wall_s"] for r in each), "size_bytes": first["size_bytes"], "tokens": first["tokens"],
        "forgetting": {key: fmean(f[key] for f in forgetting) for key in ("before", "after")} if forgetting else None,
        "curves": {str(seed): [[s, round(loss, 4)] for s, loss in r["curve"]] for seed, r in results.items()},
        "device": first["device"],
    }  # fmt: skip


def _trained(results: dict[int, Any]) -> bool | None:
    """Whether a method's loss fell in most of its runs; None where that cannot be told."""
    return was_trained([result["descent"]["verdict"] for result in results.values() if result["descent"]])


def _told_not_to_fall(result: dict[str, Any]) -> bool:
    return bool(result["descent"]) and result["descent"]["rate_to_try"] is not None


def _family(recipe: Recipe) -> str:
    from ..core.config import method

    return method(method_config(recipe)).family


def check(request: Request) -> None:
    """Refuse numbers that make no comparison.

    Raises:
        RecipeError: names the option.
    """
    limits = {"--seeds": (request.seeds, 1), "--tune": (request.tune, 0), "--max-steps": (request.max_steps, 1),
              "--parallel": (request.parallel, 1)}  # fmt: skip
    for option, (value, least) in limits.items():
        if value is not None and value < least:
            raise RecipeError("too small", where=option, got=value, expected=f">= {least}")
    if any(key == "method.type" for key, _ in request.overrides):
        raise RecipeError("the methods that are compared are named by --methods", where="method.type",
                          got=dict(request.overrides)["method.type"], fix="leave it out")  # fmt: skip
    if request.tune > len(FACTORS):
        raise RecipeError("too many rates", where="--tune", got=request.tune, expected=f"<= {len(FACTORS)}",
                          fix="afina tune searches more of one recipe")  # fmt: skip
    if any(rank < 1 for rank in request.ranks) or len(set(request.ranks)) < len(request.ranks):
        raise RecipeError("ranks are different whole numbers from 1 on", where="--ranks", got=list(request.ranks))
