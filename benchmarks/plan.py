"""How far the plan is from what runs take: peak memory and time a step, of runs on this machine's processor.

    python -m benchmarks.plan [--only CASE ...] [--again]

Each case trains in a process of its own, after a tiny run of the same kind, so that libraries are loaded before the
baseline is taken: the resident memory right before the model is read. The peak is the kernel's (VmHWM, reset at the
baseline). Then the same process plans the same recipe. Results are kept as they come (`results/plan.json`), so that
what was stopped goes on; docs/plan-results.md is made of all of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import plan_cases, plan_pipelines
from .plan_cases import CASES
from .plan_fleets import lines as of_fleets
from .plan_pipelines import DRAWINGS
from .timing import RESULTS, child, machine

FILES = {RESULTS / "plan.json": CASES, RESULTS / "plan-pipelines.json": DRAWINGS}
EVERY = {**CASES, **DRAWINGS}
PAGE = Path(__file__).parents[1] / "docs" / "plan-results.md"


def measure(name: str) -> dict[str, Any]:
    """One case, in this process: what it takes, and what the plan says."""
    timed, before = name not in DRAWINGS, list[float]()

    def look(real: Path) -> None:
        if timed:
            before.append(_planned(real, timed=True)["seconds"])

    with tempfile.TemporaryDirectory() as folder:
        real, watch, loss = _watched(name, Path(folder), look)
        plan = _planned(real, timed=timed)
    steps = watch.steps[1:]
    measured = {**_memory(watch), "seconds": statistics.median(steps), "least": min(steps),
                "steps": len(watch.steps), "loss": loss}  # fmt: skip
    if timed:  # the speed was measured right before and right after
        plan["seconds"] = (before[0] + plan["seconds"]) / 2
    return {"measured": measured, "plan": plan}


def remeasure(name: str) -> dict[str, Any]:
    """What one case takes of memory, without its plan."""
    with tempfile.TemporaryDirectory() as folder:
        return _memory(_watched(name, Path(folder))[1])


def _memory(watch: Any) -> dict[str, Any]:
    return {"peak": watch.peak, "ready": watch.ready, "read": watch.read}


def _watched(name: str, folder: Path, first: Callable[[Path], None] = lambda real: None) -> tuple[Path, Any, float]:
    """Run one case after a tiny one of its kind, and after `first` of its recipe: the recipe, what was seen, the
    loss."""
    import torch

    torch.set_num_threads(1)
    from afina.train.loop.run import run
    from afina.train.recipe.settings import load_recipe

    small, real = (_write(name, folder / kind, tiny=kind == "tiny") for kind in ("tiny", "real"))
    run(load_recipe(str(small)), Watch())
    first(real)
    watch = Watch(reads=name in DRAWINGS)
    done = run(load_recipe(str(real)), watch)
    return real, watch, done.report["training"]["loss"]


def replan(name: str) -> dict[str, Any]:
    """What the plan says of one case, without running it."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return _planned(_write(name, Path(folder) / "real", tiny=False), timed=name not in DRAWINGS)


def _write(name: str, folder: Path, *, tiny: bool) -> Path:
    """The recipe of a case."""
    if name in DRAWINGS:
        return plan_pipelines.write(DRAWINGS[name], folder, tiny=tiny)
    return plan_cases.write(CASES[name], folder, tiny=tiny)


def _planned(path: Path, *, timed: bool) -> dict[str, Any]:
    """The plan's figures, with the machine's speed as it is now."""
    import torch

    from afina.devices.place import place
    from afina.plan.probe import speed_of
    from afina.train.loop.plans.forecast import READING, forecast, target_of
    from afina.train.loop.plans.setting import setting_of
    from afina.train.recipe.settings import load_recipe
    from afina.train.report.events import Reporter

    recipe = load_recipe(str(path))
    if timed:
        speed_of(place("cpu"), getattr(torch, recipe.model.dtype), again=True)
    found = forecast(setting_of(recipe, Reporter()), target_of("cpu"), timed=timed)
    read = found.beside.get(READING)
    return {"bytes": found.peak.bytes if read else found.bytes, "parts": dict(found.peak.parts),
            "seconds": found.seconds, "gflop": round(found.flops / 1e9, 2),
            "read": read.bytes if read else None}  # fmt: skip


def _watch() -> type[Any]:
    from transformers import TrainerCallback

    from afina.devices.memory_use import resident_kib, trim
    from afina.train.report.events import Reporter

    class Steps(TrainerCallback):  # type: ignore[misc]
        def __init__(self, into: list[float]) -> None:
            self.into, self.began = into, 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began = time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.into.append(time.process_time() - self.began)

    class Watching(Reporter):
        """Bytes and seconds as a run passes its stages.

        Args:
            reads: whether models of its own read its rows, whose memory counts.
        """

        def __init__(self, reads: bool = False) -> None:
            self.steps: list[float] = []
            self.reads, self.base, self.peak, self.ready, self.read = reads, 0, 0, 0, 0

        def note(self, text: str) -> None:
            if self.reads and text.startswith("device: "):  # rows are known, and not read yet
                self._begin()

        def examples(self, examples: Any) -> None:  # told right before the model is read
            if not self.reads:
                self._begin()

        def _begin(self) -> None:
            gc.collect()
            trim()  # what the tiny run left
            self.base = int(1024 * resident_kib())
            Path("/proc/self/clear_refs").write_text("5")

        def reached(self, stage: Any, parts: Any) -> None:
            if stage == "ready":
                self.ready = int(1024 * resident_kib()) - self.base
                if self.reads:  # what read the rows is gone by now
                    self.read = int(1024 * resident_kib("VmHWM")) - self.base
                    Path("/proc/self/clear_refs").write_text("5")
                parts["trainer"].add_callback(Steps(self.steps))
            elif stage == "trained":
                self.peak = int(1024 * resident_kib("VmHWM")) - self.base

    return Watching


def Watch(reads: bool = False) -> Any:  # noqa: N802 - a class that needs transformers
    return _watch()(reads)


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def _elsewhere(found: dict[str, Any]) -> str:
    """When and where memory was measured or planned anew, after the times."""
    told = (("remeasured", "measured"), ("planned", "planned"))
    return "".join(
        f" Memory was {what} anew on {found[key]['date']}, on {found[key]['machine']['processor']}."
        for key, what in told if key in found
    )  # fmt: skip


def page(found: dict[str, Any], drawn: dict[str, Any] | None = None) -> str:
    """The errors as Markdown; of pipelines, `drawn`, those of memory."""
    cases = {name: case for name, case in found["cases"].items() if "measured" in case}
    errors = {n: (_off(c, "bytes", "peak"), _off(c, "seconds", "seconds")) for n, c in cases.items()}
    lines = [
        "# The plan: measured", "",
        f"{found['date']}; {found['machine']['processor']}, one thread; seconds are the process's own, because others "
        f"worked on the machine.{_elsewhere(found)} Made by `make bench-plan`; what the columns mean is in "
        "[plan.md](plan.md).", "",
        _summary("memory", [memory for memory, _ in errors.values()], 0.05),
        _summary("time", [seconds for _, seconds in errors.values()], 0.2), "",
        "| run | peak, MiB | planned | error | step, s | planned | error |", "|---|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for name, case in cases.items():
        peak, seconds = case["measured"]["peak"] / 2**20, case["measured"]["seconds"]
        lines.append(f"| {name} | {peak:.0f} | {case['plan']['bytes'] / 2**20:.0f} | {errors[name][0]:+.1%} | "
                     f"{seconds:.3f} | {case['plan']['seconds']:.3f} | {errors[name][1]:+.0%} |")  # fmt: skip
    failed = [f"{name}: {case['error']}" for name, case in found["cases"].items() if "error" in case]
    more = _pipelines(drawn) if drawn else []
    lines += ["", "Not measured:", "", *(f"- {line}" for line in failed)] if failed else []
    return "\n".join([*lines, *more, *of_fleets(), ""])


def _pipelines(drawn: dict[str, Any]) -> list[str]:
    """The errors of pipelines' runs as lines: of a step, and while rows are read by models before the first."""
    cases = {name: case for name, case in drawn["cases"].items() if "measured" in case}
    lines = [
        "", "## Pipelines of diffusers", "",
        f"{drawn['date']}; {drawn['machine']['processor']}, one thread; memory alone. Widths and settings are in "
        "`benchmarks/plan_pipelines.py`; beside a step what is taken while rows are read, before the first.", "",
        _summary("memory", [_off(case, "bytes", "peak") for case in cases.values()], 0.05),
        "| run | peak, MiB | planned | error | reading, MiB | planned | error |", "|---|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for name, case in cases.items():
        told = [f"{case['measured'][m] / 2**20:.0f} | {case['plan'][p] / 2**20:.0f} | {_off(case, p, m):+.1%}"
                for p, m in (("bytes", "peak"), ("read", "read"))]  # fmt: skip
        lines.append(f"| {name} | {told[0]} | {told[1]} |")
    return lines


def _off(case: dict[str, Any], planned: str, measured: str) -> float:
    return case["plan"][planned] / case["measured"][measured] - 1


def _summary(what: str, errors: list[float], aim: float) -> str:
    sizes = sorted(map(abs, errors))
    return (f"Of {len(sizes)} runs {sum(size <= aim for size in sizes)} are within {aim:.0%} in {what}; "
            f"the median error is {statistics.median(sizes):.1%}, the largest {sizes[-1]:.1%}, the mean with its sign "
            f"{statistics.mean(errors):+.1%}.\n")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", choices=EVERY, help="measure it in this process")
    parser.add_argument("--replan-one", choices=EVERY, help="plan it in this process")
    parser.add_argument("--only", nargs="*", default=[], choices=[*EVERY])
    parser.add_argument("--again", action="store_true", help="measure anew what was measured")
    parser.add_argument("--replan", action="store_true", help="plan anew what was measured; times stay as they were")
    parser.add_argument("--remeasure-one", choices=EVERY, help="measure its memory in this process")
    parser.add_argument("--remeasure", metavar="SINCE", help="measure the memory anew of what was not since this date; "
                        "times and plans stay as they were")  # fmt: skip
    given = parser.parse_args()
    for does, name in ((measure, given.one), (replan, given.replan_one), (remeasure, given.remeasure_one)):
        if name:
            print("RESULT " + json.dumps(does(name)))
            return
    for name in given.only or EVERY:
        file = next(file for file, names in FILES.items() if name in names)
        cases = read(file).get("cases", {})
        done = "measured" in cases.get(name, {})
        old = given.remeasure and cases.get(name, {}).get("measured", {}).get("date", "") < given.remeasure
        if done and not (given.again or given.replan or old):
            continue
        print(f"{name} ...", flush=True)
        now, renewed = {"machine": machine(), "date": time.strftime("%Y-%m-%d")}, ""
        if done and not given.again:
            part, renewed = ("plan", "planned") if given.replan else ("measured", "remeasured")
            new = child("plan", "--replan-one" if given.replan else "--remeasure-one", name)
            kept = ("bytes", "parts", "gflop", "read", "peak", "ready") if "error" not in new else ()
            cases[name][part].update({k: new[k] for k in kept if k in new})
            if kept and not given.replan:
                cases[name][part]["date"] = now["date"]
        else:
            cases[name] = child("plan", "--one", name)
        print(json.dumps(cases[name]), flush=True)
        found = {**read(file), renewed: now, "cases": cases} if renewed else {**now, "cases": cases}
        file.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(*map(read, FILES)))


if __name__ == "__main__":
    main()
