"""One epoch over rows of unlike lengths: padded as they come, in groups of like length, packed.

    python -m benchmarks.batches [--rounds N]

96 rows of 8 to 400 tokens (log-normal, most about 60), the last third supervised; six layers of SmolLM2-135M's shapes
in bfloat16, LoRA r=16 on all linears; 8 rows a step, or sequences of up to 512 tokens, 2 a step.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from .step import ROWS, base
from .timing import interleaved

Item = dict[str, list[int]]


def rows() -> list[Item]:
    random = torch.Generator().manual_seed(0)
    lengths = torch.randn(96, generator=random).mul(0.9).add(4.1).exp().long().clamp(8, 400).tolist()
    made = []
    for length in lengths:
        ids = torch.randint(3, 49152, (length,), generator=random).tolist()
        made.append({"input_ids": ids, "labels": [-100] * (2 * length // 3) + ids[2 * length // 3 :]})
    return made


def padded(items: list[Item]) -> list[dict[str, Any]]:
    batches = []
    for i in range(0, len(items), 8):
        part, width = items[i : i + 8], max(len(x["input_ids"]) for x in items[i : i + 8])
        fill = {"input_ids": 0, "labels": -100}
        batch = {k: torch.tensor([x[k] + [v] * (width - len(x[k])) for x in part]) for k, v in fill.items()}
        seen = [[1] * len(x["input_ids"]) + [0] * (width - len(x["input_ids"])) for x in part]
        batches.append({**batch, "attention_mask": torch.tensor(seen)})
    return batches


def packed(items: list[Item]) -> list[dict[str, Any]]:
    from afina.train.data.arranged.packing import PackedCollator, bins_of, joined

    bins = [joined([items[i] for i in members]) for members in bins_of([len(x["input_ids"]) for x in items], 512)]
    tokenizer: Any = SimpleNamespace(pad_token_id=0)
    return [PackedCollator(tokenizer)(bins[i : i + 2]) for i in range(0, len(bins), 2)]


def epoch(model: Any, batches: list[dict[str, Any]]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=1e-4, fused=True)

    def run() -> None:
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    import peft

    import afina
    from afina.kernels.speed import speed_up

    plain = base(ROWS["lora-bfloat16"], layers=6)
    lora = {**ROWS["lora-bfloat16"].options, "task_type": "CAUSAL_LM"}
    theirs = peft.get_peft_model(copy.deepcopy(plain), peft.LoraConfig(**lora))
    ours = afina.get_peft_model(plain, afina.LoraConfig(**lora))
    speed_up(ours, keep_logits=False)
    items = rows()
    alike = sorted(items, key=lambda x: len(x["input_ids"]))
    runs = {"peft": epoch(theirs, padded(items)), "afina, padded": epoch(ours, padded(items)),
            "afina, like lengths": epoch(ours, padded(alike)), "afina, packed": epoch(ours, packed(items))}  # fmt: skip
    print("RESULT " + json.dumps({"an epoch of unlike lengths": interleaved(runs, given.rounds)}))


if __name__ == "__main__":
    main()
