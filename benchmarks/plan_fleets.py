"""How far the plan of a fleet is from what it takes: `python -m benchmarks.plan_fleets [--again]`.

Runs of `plan_cases`' first shapes, 1 to 8 of one kind and a mixture of methods: in `train_many` with passes that they
share, and taking turns with passes of their own and a halt after the third step, where all wait for each other as
candidates of `tune` do. Each fleet is in a process of its own after a tiny one of the same kind. Results are kept as
they come (`results/plan-fleets.json`); docs/plan-results.md, which `benchmarks.plan` makes, has them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from .plan_cases import CASES, write
from .timing import RESULTS, child, machine

FILE = RESULTS / "plan-fleets.json"
_MIXED = ("lora", "lora, rank 64", "ia3", "prompt_tuning")
FLEETS = {**{f"{count} x lora": ("lora",) * count for count in (1, 2, 4, 8)}, ", ".join(_MIXED): _MIXED}
IN_TURN = "in turn: "
ALL = [*FLEETS, *(IN_TURN + name for name in [*FLEETS][1:])]


def recipes(names: tuple[str, ...], folder: Path, *, tiny: bool) -> list[Any]:
    """The runs of a fleet, on one base."""
    from afina.train.recipe.settings import load_recipe

    out = []
    for number, name in enumerate(names):
        source = folder / name
        path = source / "recipe.yaml" if source.is_dir() else write(CASES[name], source, tiny=tiny)
        where = [("output.dir", str(folder / f"run{number}")), ("training.seed", str(number))]
        out.append(load_recipe(str(path), [*where, ("model.path", str(folder / names[0] / "model"))]))
    return out


def measure(name: str) -> dict[str, Any]:
    """One fleet, in this process."""
    import torch

    torch.set_num_threads(1)
    from afina.devices.memory_use import resident_kib, trim
    from afina.train.fleet.room import planned_bytes

    names, in_turn = FLEETS[name.removeprefix(IN_TURN)], name.startswith(IN_TURN)
    with tempfile.TemporaryDirectory() as folder:
        trained(recipes(names, Path(folder) / "tiny", tiny=True), in_turn=in_turn)
        real = recipes(names, Path(folder) / "real", tiny=False)
        trim()
        base = resident_kib()
        Path("/proc/self/clear_refs").write_text("5")
        found = trained(real, in_turn=in_turn)
        peak = round(1024 * (resident_kib("VmHWM") - base))
        assert all(one.error is None for one in found), [one.error for one in found]
        others = [replaced(recipe, Path(folder) / f"planned{n}") for n, recipe in enumerate(real)]
        planned = planned_bytes(others, in_turn=in_turn)
    return {"peak": peak, "planned": planned, "shared": [one.shared for one in found]}


def trained(todo: list[Any], *, in_turn: bool) -> list[Any]:
    """What becomes of the runs of a fleet."""
    from afina import train_many
    from afina.train.fleet.fleet import Fleet

    if in_turn:
        return Fleet(halting(), alone="in turn").run(todo, overwrite=False, resume=[False] * len(todo))
    return train_many(todo, at_once=len(todo))


def halting() -> Any:
    """Lets every run wait for all others after its third step."""
    from transformers import TrainerCallback

    from afina.train.report.events import Reporter

    class Halts(Reporter):
        def reached(self, stage: Any, parts: Any) -> None:
            class Waits(TrainerCallback):  # type: ignore[misc]
                def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                    if state.global_step == 3:
                        parts["meet"](0)

            if stage == "ready":
                parts["trainer"].add_callback(Waits())

    return Halts()


def replaced(recipe: Any, folder: Path) -> Any:
    """The recipe with a folder that nothing is in yet."""
    return recipe.model_copy(update={"output": recipe.output.model_copy(update={"dir": str(folder)})})


def lines() -> list[str]:
    """A table of what was measured, as Markdown."""
    if not FILE.is_file():
        return []
    found = json.loads(FILE.read_text())
    out = ["", "## Fleets", "", f"{found['date']}; {found['machine']['processor']}, one thread; `python -m "
           "benchmarks.plan_fleets`. Loading, the trial before the first step, six steps and saving are within; runs "
           "that take turns have no trial.", "",
           "| runs on one base | peak, MiB | planned | error |", "|---|--:|--:|--:|"]  # fmt: skip
    for name, case in found["fleets"].items():
        if "error" in case:
            out.append(f"| {name} | {case['error']} | | |")
            continue
        peak, planned = case["peak"] / 2**20, case["planned"] / 2**20
        out.append(f"| {name} | {peak:.0f} | {planned:.0f} | {planned / peak - 1:+.1%} |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", choices=ALL, help="measure it in this process")
    parser.add_argument("--again", action="store_true", help="measure anew what was measured")
    given = parser.parse_args()
    if given.one:
        print("RESULT " + json.dumps(measure(given.one)))
        return
    for name in ALL:
        done = json.loads(FILE.read_text())["fleets"] if FILE.is_file() else {}
        if "peak" in done.get(name, {}) and not given.again:
            continue
        done[name] = child("plan_fleets", "--one", name)
        print(name, json.dumps(done[name]), flush=True)
        found = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "fleets": done}
        FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
