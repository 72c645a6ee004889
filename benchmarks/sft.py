"""A supervised fine-tuning step through TRL's SFTTrainer, with `peft`, and with afina in its place.

    python -m benchmarks.sft [--rounds N]

The stand-in needs a process of its own, so each contender runs in one and waits before every step until it is its turn.
The shapes and the data are those of `benchmarks.step lora-bfloat16`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import IO, Any

CONTENDERS = ("peft", "afina", "afina + speed_up")


def trainer_of(name: str, folder: str) -> Any:
    """An SFTTrainer that is a script knowing only the name `peft`, but for one line with `speed_up`."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from .step import ROWS, base
    from .toys import tokenizer

    row = ROWS["lora-bfloat16"]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 49152, (64, row.tokens), generator=generator).tolist()
    labels = [[-100] * (2 * row.tokens // 3) + x[2 * row.tokens // 3 :] for x in ids]
    settings = SFTConfig(
        folder, per_device_train_batch_size=row.batch, max_steps=1000, report_to=[], save_strategy="no", use_cpu=True,
        logging_strategy="no", max_length=None, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True}, learning_rate=1e-4,
    )  # fmt: skip
    trainer = SFTTrainer(
        base(row), settings, train_dataset=Dataset.from_dict({"input_ids": ids, "labels": labels}),
        processing_class=tokenizer(), peft_config=LoraConfig(task_type="CAUSAL_LM", **row.options),
    )  # fmt: skip
    if name == "afina + speed_up":
        from afina.kernels.speed import speed_up

        speed_up(trainer.model)
    return trainer


def contend(name: str) -> None:
    """One contender: a step for every line on standard input; its seconds of CPU time go to standard output."""
    if name != "peft":
        import afina.compat

        from .scenarios import NoPeft

        sys.meta_path.insert(0, NoPeft())
        afina.compat.stand_in()
    import torch
    from transformers import TrainerCallback

    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    out, sys.stdout = sys.stdout, sys.stderr

    class Turns(TrainerCallback):
        def __init__(self) -> None:
            self.started = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not sys.stdin.readline():
                control.should_training_stop = True
            self.started = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps({"cpu": time.process_time() - self.started, "peak": peak}), file=out, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(name, folder)
        trainer.add_callback(Turns())
        trainer.train()


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contender", choices=CONTENDERS)
    given = parser.parse_args()
    if given.contender:
        contend(given.contender)
        return
    running = {
        n: subprocess.Popen([sys.executable, "-m", "benchmarks.sft", "--contender", n], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}, cwd=Path(__file__).parents[1])
        for n in CONTENDERS
    }  # fmt: skip
    cpu: dict[str, list[float]] = {n: [] for n in CONTENDERS}
    try:
        for number in range(given.rounds + 1):
            for name, process in running.items():
                pipe(process.stdin).write("go\n")
                pipe(process.stdin).flush()
                found = json.loads(pipe(process.stdout).readline())
                if number:
                    cpu[name].append(found["cpu"])
    finally:
        for process in running.values():
            process.kill()
    print("RESULT " + json.dumps({
        "SFT step through TRL": {n: {"cpu_min": min(t), "cpu_median": statistics.median(t)} for n, t in cpu.items()}
    }))  # fmt: skip


if __name__ == "__main__":
    main()
