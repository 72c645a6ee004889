"""All benchmarks: `python -m benchmarks [--rounds N] [--only ROW ...]`.

Writes results/ROW.json, and docs/speed-results.md from all rows measured so far.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from .step import COMPILED, NAMES, ROWS
from .timing import RESULTS, child, machine

PAGE = Path(__file__).parents[1] / "docs" / "speed-results.md"
MEMORY_ROWS = ("lora-float32", "lora-bfloat16", "lora-float32-long", "lora-bfloat16-long")


PARTS = ("handling", "sft", "prefix", "batches")


def measure(row: str, rounds: int) -> dict[str, Any]:
    """One row; one that fails holds its error."""
    found = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "rounds": rounds}
    if row in PARTS:
        return {**found, "handling": child(row, "--rounds", str(rounds))}
    found |= child("step", row, "--rounds", str(rounds))
    if row in MEMORY_ROWS and "error" not in found:
        names = (*NAMES, COMPILED) if ROWS[row].compiled else NAMES
        found["memory"] = {n: child("step", row, "--memory", n).get("peak_above_weights") for n in names}
    return found


def read() -> dict[str, Any]:
    """All rows that were measured, now or before."""
    files = {r: RESULTS / f"{r}.json" for r in (*ROWS, *PARTS)}
    return {r: json.loads(f.read_text()) for r, f in files.items() if f.is_file()}


def page(rows: dict[str, Any]) -> str:
    """The results as Markdown: ratios of minima of CPU time."""
    first = next(iter(rows.values()))
    where = first["machine"]
    versions = ", ".join(f"{n} {v}" for n, v in where["versions"].items())
    steps = {r: x for r, x in rows.items() if r in ROWS}
    handling = {what: t for r in PARTS if r in rows for what, t in rows[r]["handling"].items()}
    out = ["# Speed: measured", "", f"{first['date']}; {where['processor']}, {where['cores']} cores; {versions}; "
           f"{first['rounds']} interleaved rounds, minima of CPU time. Made by `make bench`; what the rows mean is in "
           "[speed.md](speed.md).", "",
           "## One training step, in multiples of the floor (afina / peft in brackets)", "",
           "| row | peft | afina | with `speed_up` | loss alone | compiled too |",
           "|---|--:|--:|--:|--:|--:|"]  # fmt: skip
    for row, result in steps.items():
        if "error" in result:
            out.append(f"| {row} | {result['error']} | | | | |")
            continue
        times = {n: t["cpu_min"] for n, t in result["times"].items()}
        cells = [f"{times['peft'] / times['floor']:.2f}"]
        cells += [
            f"{times[n] / times['floor']:.2f} ({times[n] / times['peft']:.2f})"
            for n in (*NAMES[1:], COMPILED)
            if n in times
        ]
        out.append(f"| {row} | {' | '.join(cells)} |{'' if COMPILED in times else ' |'}")
    out += ["", "## Peak memory beyond the weights, afina / peft", "",
            "| row | peft, MiB | afina | with `speed_up` | loss alone | compiled too |",
            "|---|--:|--:|--:|--:|--:|"]  # fmt: skip
    for row, result in steps.items():
        memory = result.get("memory")
        if memory and memory[NAMES[0]]:
            cells = [f"{memory[n] / memory[NAMES[0]]:.2f}" if memory.get(n) else "" for n in (*NAMES[1:], COMPILED)]
            out.append(f"| {row} | {memory[NAMES[0]] / 2**20:.0f} | {' | '.join(cells)} |")
    out += ["", "## Everything else, peft / afina (above 1: afina is faster)", "", "| what | times |", "|---|--:|"]
    for what, times in handling.items():
        if isinstance(times, dict) and isinstance(times.get("peft"), dict):
            for name in [n for n in times if n != "peft" and isinstance(times[n], dict)]:
                ratio = times["peft"]["cpu_min"] / times[name]["cpu_min"]
                out.append(f"| {what}{name.removeprefix('afina').replace(' +', ',', 1)} | {ratio:.1f} |")
        elif isinstance(times, dict) and "peft, one batch" in times:
            for way in ("one batch", "one by one"):
                ratio = times[f"peft, {way}"]["cpu_min"] / times[f"afina, {way}"]["cpu_min"]
                out.append(f"| {what}, {way} | {ratio:.1f} |")
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], choices=(*ROWS, *PARTS))
    given = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for row in given.only or (*ROWS, *PARTS):
        print(f"{row} ...", flush=True)
        (RESULTS / f"{row}.json").write_text(json.dumps(measure(row, given.rounds), indent=1) + "\n")
    text = page(read())
    PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
