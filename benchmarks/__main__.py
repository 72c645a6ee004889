"""All benchmarks: `python -m benchmarks [--rounds N] [--only ROW ...]`; writes results/ and docs/speed-results.md."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from .step import NAMES, ROWS
from .timing import RESULTS, child, machine

PAGE = Path(__file__).parents[1] / "docs" / "speed-results.md"
MEMORY_ROWS = ("lora-float32", "lora-bfloat16")


def measure(rounds: int, only: list[str]) -> dict[str, Any]:
    """Every wanted row; a row that fails holds its error."""
    found: dict[str, Any] = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "rounds": rounds, "steps": {}}
    for row in [r for r in ROWS if not only or r in only]:
        print(f"step {row} ...", flush=True)
        found["steps"][row] = child("step", row, "--rounds", str(rounds))
        if row in MEMORY_ROWS and "error" not in found["steps"][row]:
            memory = {n: child("step", row, "--memory", n).get("peak_above_weights") for n in NAMES}
            found["steps"][row]["memory"] = memory
    if not only or "handling" in only:
        print("handling ...", flush=True)
        found["handling"] = child("handling", "--rounds", str(rounds))
    return found


def page(found: dict[str, Any]) -> str:
    """The results as Markdown: ratios of minima of CPU time."""
    where = found["machine"]
    versions = ", ".join(f"{n} {v}" for n, v in where["versions"].items())
    out = ["# Speed: measured", "", f"{found['date']}; {where['processor']}, {where['cores']} cores; {versions}; "
           f"{found['rounds']} interleaved rounds, minima of CPU time. Made by `make bench`; what the rows mean is in "
           "[speed.md](speed.md).", "",
           "## One training step, in multiples of the floor (afina / peft in brackets)", "",
           "| row | peft | afina | with `speed_up` | loss alone |", "|---|--:|--:|--:|--:|"]  # fmt: skip
    for row, result in found["steps"].items():
        if "error" in result:
            out.append(f"| {row} | {result['error']} | | | |")
            continue
        times = {n: t["cpu_min"] for n, t in result["times"].items()}
        cells = [f"{times['peft'] / times['floor']:.2f}"]
        cells += [f"{times[n] / times['floor']:.2f} ({times[n] / times['peft']:.2f})" for n in NAMES[1:]]
        out.append(f"| {row} | {' | '.join(cells)} |")
    out += ["", "## Peak memory beyond the weights, afina / peft", "", "| row | afina | with `speed_up` | loss alone |",
            "|---|--:|--:|--:|"]  # fmt: skip
    for row, result in found["steps"].items():
        memory = result.get("memory")
        if memory and all(memory.values()):
            out.append(f"| {row} | {' | '.join(f'{memory[n] / memory[NAMES[0]]:.2f}' for n in NAMES[1:])} |")
    out += ["", "## Everything else, peft / afina (above 1: afina is faster)", "", "| what | times |", "|---|--:|"]
    for what, times in found.get("handling", {}).items():
        if isinstance(times, dict) and {"peft", "afina"} <= times.keys():
            out.append(f"| {what} | {times['peft']['cpu_min'] / times['afina']['cpu_min']:.1f} |")
        elif isinstance(times, dict):
            for way in ("one batch", "one by one"):
                ratio = times[f"peft, {way}"]["cpu_min"] / times[f"afina, {way}"]["cpu_min"]
                out.append(f"| {what}, {way} | {ratio:.1f} |")
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    found = measure(given.rounds, given.only)
    RESULTS.mkdir(exist_ok=True)
    name = "all" if not given.only else "-".join(given.only)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    text = page(found)
    if not given.only:
        PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
