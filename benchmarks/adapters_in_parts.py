"""What an adapter costs each of several processes whole, and in parts: `python -m benchmarks.adapters_in_parts`.

Beside a base in parts (FSDP2) either DistributedDataParallel brings a whole adapter's gradients together, as
`distributed=fsdp2` does, or `fully_shard` spreads the adapter along with the base. Counted, on processors with gloo:
bytes that lie in a process, and bytes that each receives in a step, by torch's record of its collectives.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.profiler import ProfilerActivity, profile

import afina
from afina.core.layers.sharded import blocks, is_sharded, reshard
from afina.core.layers.spreading import meeting, shard

PROCESSES, STEPS, RANK = 2, 3, 16
SIZES = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8,
         "num_key_value_heads": 8, "vocab_size": 4096, "pad_token_id": 0}  # fmt: skip


def here(tensor: Any) -> int:
    """Bytes of a tensor that lie in this process."""
    return int((tensor.to_local() if is_sharded(tensor) else tensor).nbytes)


def received(events: Any, gradients: int) -> dict[str, int]:
    """Bytes that a process receives in a recorded step, by operation, rings assumed.

    Args:
        gradients: bytes of whole ones, whose sums torch records without sizes.
    """
    out, share = Counter[str](), (PROCESSES - 1) / PROCESSES
    for event in events:
        if event.name in ("c10d::_allgather_base_", "c10d::_reduce_scatter_base_"):
            out[event.name.removeprefix("c10d::_")] += round(4 * max(n for (n,) in event.input_shapes[:2]) * share)
    return {**out, "allreduce": round(2 * gradients * share)}


def measured(number: int, parts: bool, folder: str) -> None:
    """One process: train a few steps, and write what it had."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number,
                                         world_size=PROCESSES)  # fmt: skip
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    base: Any = LlamaForCausalLM(LlamaConfig(**SIZES))
    model: Any = afina.get_peft_model(base, afina.LoraConfig(r=RANK, target_modules="all-linear"))
    if parts:
        for block in blocks(base):
            fully_shard(block)
        fully_shard(base)
    else:
        trained = [p for p in base.parameters() if p.requires_grad]
        shard(base, torch.device("cpu"), trained)
    runs: nn.Module = model if parts else meeting(model)
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=1e-3)
    ids = torch.randint(1, SIZES["vocab_size"], (1, 64))

    def step() -> None:
        runs(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    for _ in range(STEPS):
        optimizer.zero_grad()
        step()
    gradients = sum(here(p.grad) for p in own if p.grad is not None)
    optimizer.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        step()
    reshard(model.get_base_model())
    states = sum(here(t) for s in optimizer.state.values() for t in s.values() if t.numel() > 1)
    found = {"adapter": sum(map(here, own)), "gradients": gradients, "moments": states,
             "received": received(seen.events(), 0 if parts else gradients)}  # fmt: skip
    Path(folder, f"found-{number}").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


def main() -> None:
    """Measure both, and print what the first process had."""
    processes: Any = torch.multiprocessing
    for parts in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            processes.spawn(measured, (parts, folder), PROCESSES)
            found = json.loads(Path(folder, "found-0").read_text(encoding="utf-8"))
        print("in parts" if parts else "whole", json.dumps(found))


if __name__ == "__main__":
    main()
