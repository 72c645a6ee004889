"""Many LoRA runs on one base, in three ways: `python -m benchmarks.fleet [--runs 16] [--steps 6]`.

Ranks 4 to 64 at four rates, on SmolLM2-135M and the tweets, or with `--shapes 1b` on random weights of a 1B Llama with
4 rows of 64 tokens a step. `shared`: `train_many` with passes that all share. `in_turn`: `train_many` with passes of
their own, one run after the other on one base. `alone`: each by itself, as `afina train` does it, in one process; runs
of the first rate only, in place of all. The ways are processes of their own, by turns. Kept of each are the shortest
times, on a processor those that it worked: of the steps, and of all with loading and saving; the most memory; and how
far the adapters are from those alone.
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

WAYS = ("shared", "in_turn", "alone")
RANKS, RATES = (4, 8, 16, 64), (2e-4, 5e-4, 1e-3, 2e-3)


def recipes(folder: Path, given: argparse.Namespace) -> list[Any]:
    """The candidates."""
    from afina.train.recipe.settings import load_recipe

    grid = [(rank, rate) for rate in RATES for rank in RANKS][: given.runs]
    recipe = made(Path(given.made), given.shapes) if given.shapes else "tweets"
    kept = [] if given.shapes else [("dtype", "float32")]
    return [
        load_recipe(
            recipe,
            [*kept, ("method.r", str(rank)), ("learning_rate", str(rate)), ("max_steps", str(given.steps)),
             ("batch_size", "4"), ("evaluation.enabled", "false"), ("output.dir", str(folder / f"r{rank}-{rate:g}"))],
        )
        for rank, rate in grid
    ]  # fmt: skip


def made(folder: Path, shapes: str) -> str:
    """A recipe for random weights of some shapes and random words, all written to a folder once."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from .gpu.rows import LINEARS, SHAPES
    from .gpu.words import tokenizer

    recipe, words = folder / "recipe.yaml", 32000
    if recipe.is_file():
        return str(recipe)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        sizes = SHAPES["1b"] if shapes == "1b" else {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                                                     "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
        model = LlamaForCausalLM(LlamaConfig(**{**sizes, "vocab_size": words}, pad_token_id=0))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / "base")
    tokenizer(words).save_pretrained(folder / "base")
    draw = torch.Generator().manual_seed(0)
    rows = [" ".join(f"w{n}" for n in torch.randint(9, words - 9, (64,), generator=draw)) for _ in range(512)]
    lines = [json.dumps({"prompt": row[:40].rpartition(" ")[0], "completion": row[40:]}) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe.write_text(
        f"""task: causal_lm
model: {{path: {folder / "base"}, dtype: bfloat16}}
data: {{train: {folder / "rows.jsonl"}, prompt: "{{prompt}}", completion: "{{completion}}", max_length: 64}}
method: {{type: lora, r: 8, lora_alpha: 8, target_modules: [{", ".join(LINEARS)}]}}
training: {{learning_rate: 1e-3, save_steps: 1000000}}
""",
        encoding="utf-8",
    )
    return str(recipe)


def train(how: str, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Train all candidates, alone those of the first rate only; seconds of the steps and of all, and MiB."""
    import torch

    from afina import train_many
    from afina.train.loop.run import run
    from afina.train.report.events import Reporter

    on_gpu = torch.cuda.is_available()
    clock = time.monotonic if on_gpu else time.process_time

    class Watch(Reporter):
        """Adds up the time in which at least one run is between its first step and its last."""

        training, began, seconds = 0, 0.0, 0.0

        def reached(self, stage: Any, parts: Any) -> None:
            if stage == "ready":
                self.training += 1
                self.began = clock() if self.training == 1 else self.began
            elif stage == "trained":
                self.training -= 1
                self.seconds += 0.0 if self.training else clock() - self.began

    todo, watch, started, times = recipes(folder, given), Watch(), clock(), 1.0
    if how == "alone":
        few = todo[: len(RANKS)]
        times = len(todo) / len(few)
        for recipe in few:
            run(recipe, watch)
    else:
        found = train_many(todo, watch, at_once=len(todo) if how == "shared" else 1)
        assert all(one.error is None and (how == "shared") != bool(one.alone) for one in found), found
    mib = (
        torch.cuda.max_memory_allocated() / 2**20
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )
    return {"seconds": watch.seconds * times, "all": (clock() - started) * times, "mib": mib}


def apart(one: Path, other: Path) -> float:
    """The largest difference of any two adapters' numbers, as a share of the largest number."""
    from safetensors.torch import load_file

    worst = 0.0
    for file in one.glob("*/adapter_model.safetensors"):
        mine, theirs = load_file(file), load_file(other / file.parent.name / file.name)
        largest = max(float(t.abs().max()) for t in mine.values())
        worst = max(worst, *(float((mine[k] - theirs[k]).abs().max()) / largest for k in mine))
    return worst


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The ways by turns."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as work:
        for turn in range(given.times):
            for how, done in found.items():
                folder = Path(work) / f"{how}-{turn}"
                words = [sys.executable, "-m", "benchmarks.fleet", "--child", how, "--into", str(folder),
                         "--runs", str(given.runs), "--steps", str(given.steps), "--made", f"{work}/made"]  # fmt: skip
                out = subprocess.run([*words, *(["--shapes", given.shapes] if given.shapes else [])],
                                     capture_output=True, text=True, check=False)  # fmt: skip
                if out.returncode:
                    sys.exit(out.stderr[-2000:])
                done.append(json.loads(out.stdout.splitlines()[-1]))
                print(turn, how, done[-1], flush=True)
        differ = {way: apart(Path(work) / "alone-0", Path(work) / f"{way}-0") for way in WAYS[:2]}
    best: dict[str, Any] = {
        how: {**{key: round(min(d[key] for d in done), 1) for key in ("seconds", "all")},
              "mib": round(max(d["mib"] for d in done))}
        for how, done in found.items()
    }  # fmt: skip
    for way, distance in differ.items():
        best[way] |= {"apart": distance, **{f"{key}_to_alone": round(best[way][key] / best["alone"][key], 3)
                                            for key in ("seconds", "all")}}  # fmt: skip
    return {"shapes": given.shapes or "SmolLM2-135M", "runs": given.runs, "steps": given.steps, **best}


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet")
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--shapes", choices=("1b", "tiny"), help="random weights instead of SmolLM2's")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--made", help=argparse.SUPPRESS)
    words = parser.parse_args(given)
    if words.child:
        print(json.dumps(train(words.child, words.into, words)))
        return
    found = measure(words)
    print(json.dumps(found, indent=2))
    if words.shapes != "tiny":
        name = f"fleet-{words.shapes}.json" if words.shapes else "fleet.json"
        (RESULTS / name).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
