"""How far the methods are apart: `python -m benchmarks.method_table [--tasks ...]`.

More than 20 methods, each with its learning rate searched among five, three seeds, on three of the embedded tasks cut
to what a night on two cores can do: a small encoder classifies tweets, a small language model answers them with a word,
and the same model goes on reading, in French. Each task is one `afina compare`, whose own folder keeps everything that
was finished: called again, the command goes on where it was stopped. What a task ends in goes to docs/results, and
scripts/method_table_page.py writes the page of all of them, docs/method-table.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "results"
PAGE = ROOT / "scripts" / "method_table_page.py"
FOLDER = ROOT / "runs" / "method-table"
SEEDS = 3
AS_SHIPPED = "adalora,vera,lokr,ia3,oft,road,fourierft,miss,delora,reft,bottleneck,prompt_tuning,p_tuning,prefix_tuning"
"""With their own settings and places."""
SLOW = "loha,hra,randlora"
"""The same; on the language model they take several times as long."""
BASELINES = "full,last_layers,bitfit,ln_tuning"
FAMILY = "lora,lora:target_modules=all-linear,dora,pissa"
"""LoRA on the queries and values of the recipe (rank 8, alpha 16), on all linear layers, and two of its derivatives."""
_QV = "r=8:lora_alpha=16:target_modules=[q_proj,v_proj]"
FAMILY_OF_FRENCH = f"lora:{_QV},lora:r=8:lora_alpha=16,dora:{_QV},pissa:{_QV}"
"""The same four rows, for a recipe that has its LoRA on all linear layers."""
TASKS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tweets-classifier": ("max_train_rows=1600", "batch_size=16", "--max-steps", "100",
                              "--methods", f"{BASELINES},{FAMILY},{AS_SHIPPED},{SLOW}"),
        "french": ("dtype=bfloat16", "max_length=64", "max_eval_rows=60", "--max-steps", "20",
                   "--methods", f"{BASELINES},{FAMILY_OF_FRENCH},{AS_SHIPPED}"),
        "tweets": ("dtype=bfloat16", "max_length=96", "max_eval_rows=120", "batch_size=4", "--max-steps", "30",
                   "--methods", f"{BASELINES},{FAMILY},{AS_SHIPPED}"),
    }
)  # fmt: skip
"""By embedded recipe: what `afina compare` is asked for."""


def command(task: str) -> list[str]:
    """The comparison of one task, as it is called from the repository's folder."""
    return ["compare", task, *TASKS[task], "--seeds", str(SEEDS), "--out", str(FOLDER / task)]


def keep(task: str) -> None:
    """Put the comparison's files beside those of the other tasks."""
    for name in ("comparison.json", "comparison.csv", "comparison.md", "comparison.html", "pareto.svg"):
        source = FOLDER / task / name
        goal = f"{task}-pareto.svg" if name == "pareto.svg" else f"{task}{source.suffix}"
        (TARGET / goal).write_bytes(source.read_bytes())


def main() -> None:
    """Compare what is missing, keep it, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.method_table")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="RECIPE")
    given = parser.parse_args()
    for task in given.tasks:
        code = subprocess.run([sys.executable, "-m", "afina", *command(task)], cwd=ROOT, check=False).returncode
        if code:
            raise SystemExit(code)  # by a signal too: what was finished is kept
        keep(task)
    raise SystemExit(subprocess.run([sys.executable, str(PAGE)], check=False).returncode)


if __name__ == "__main__":
    main()
