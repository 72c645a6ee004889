"""LoRA on the last 6 of 30 layers: a step with the outputs of the frozen layers kept, and without.

python -m benchmarks.prefix [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import warnings
from typing import Any

import torch

from .step import LINEARS, ROWS, base, step
from .timing import interleaved


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    import peft

    import afina
    from afina.kernels.frozen import FrozenPrefix
    from afina.kernels.speed import speed_up

    options: dict[str, Any] = {"r": 16, "target_modules": LINEARS, "layers_to_transform": list(range(24, 30))}
    runs = {}
    for name in ("peft", "afina", "afina + speed_up", "afina + speed_up, outputs kept"):
        library = peft if name == "peft" else afina
        row = ROWS["lora-bfloat16"]
        model = library.get_peft_model(base(row), library.LoraConfig(task_type="CAUSAL_LM", **options))
        if "speed_up" in name:
            speed_up(model, keep_logits=False)
        runs[name] = step(model, row)
        if name.endswith("kept"):
            FrozenPrefix(model).__enter__()
    losses = {n: run() for n, run in runs.items()}
    print(
        "RESULT "
        + json.dumps({"step on the last 6 of 30 layers": interleaved(runs, rounds, warm=True), "losses": losses})
    )


if __name__ == "__main__":
    main()
