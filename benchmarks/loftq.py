"""LoftQ against plain QLoRA on an NF4 base: the error of the weights at the start, and the held-out loss in training.

    python benchmarks/loftq.py MODEL_FOLDER ROWS.jsonl [--steps 20] [--rank 16]

The folder holds a model with its unquantised weights (safetensors), the rows have `text` and `label`. Printed as a
Markdown table; then what merging the trained adapter costs, into the dense weights and into NF4.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

import afina
from afina.core.hosts.host import hosts
from afina.methods.initialisers.loftq import replace_lora_weights_loftq

BATCH, LENGTH, HELD_OUT = 8, 64, 64


def load(folder: Path, quantised: bool) -> nn.Module:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=torch.float32)  # fmt: skip
    options = {"quantization_config": config} if quantised else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


def batches(folder: Path, rows: Path) -> list[dict[str, Tensor]]:
    """Batches of texts with their labels; the loss counts every token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    texts = [f"{row['text']}\nSentiment: {row['label']}" for row in lines]
    out = []
    for start in range(0, len(texts) - BATCH + 1, BATCH):
        held = tokenizer(texts[start : start + BATCH], return_tensors="pt", padding=True, truncation=True,
                         max_length=LENGTH)  # fmt: skip
        held["labels"] = held["input_ids"].masked_fill(held["attention_mask"] == 0, -100)
        out.append(dict(held))
    return out


@torch.no_grad()
def loss_of(model: nn.Module, data: list[dict[str, Tensor]]) -> float:
    model.train()  # the kernels of training, in float32; there is no dropout
    return sum(float(model(**batch).loss) for batch in data) / len(data)


@torch.no_grad()
def weight_error(model: nn.Module, dense: nn.Module) -> float:
    """Mean over layers of |W - (Q + s B A)| / |W|."""
    errors = []
    for name, host in hosts(model.get_base_model()):
        want = dense.get_submodule(name).weight
        got = host.base.read()[0]
        got = got + host.adapter("default").delta(got)
        errors.append(float((want - got).norm() / want.norm()))
    return sum(errors) / len(errors)


def train(model: nn.Module, data: list[dict[str, Tensor]], rate: float, steps: int) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        model(**data[step % len(data)]).loss.backward()
        optimizer.step()


def adapted(folder: Path, rank: int, loftq: bool) -> nn.Module:
    torch.manual_seed(0)
    base = afina.prepare_model_for_kbit_training(load(folder, True), use_gradient_checkpointing=False)
    model = afina.get_peft_model(base, afina.LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear"))
    if loftq:
        replace_lora_weights_loftq(model, folder)
    return model


def merging(model: nn.Module, dense: nn.Module, held: list[dict[str, Tensor]], folder: Path) -> None:
    """Print the held-out loss of the trained adapter on its NF4 base, on the dense one, and requantised."""
    print(f"\nheld-out loss of the trained QLoRA adapter: on NF4 {loss_of(model, held):.4f}", end="")
    on_dense = afina.get_peft_model(dense, model.peft_config["default"])
    afina.set_peft_model_state_dict(on_dense, afina.get_peft_model_state_dict(model))
    print(f", merged into the dense weights {loss_of(on_dense.merge_and_unload(), held):.4f}", end="")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.merge_adapter(requantise=True)
    lost = [h.base.lost for _, h in hosts(model) if h.merged]
    print(f", requantised {loss_of(model, held):.4f}, where {min(lost):.0%} to {max(lost):.0%} (mean "
          f"{sum(lost) / len(lost):.0%}) of each update is lost")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=3e-4)
    options = parser.parse_args()
    data = batches(options.model, options.rows)
    held, data = data[: HELD_OUT // BATCH], data[HELD_OUT // BATCH :]
    dense = load(options.model, False)
    print(f"{options.model.name}: rank {options.rank}, {options.steps} steps of {BATCH} rows, rate {options.rate:g}; "
          f"held-out loss of the dense base {loss_of(dense, held):.4f} on {HELD_OUT} rows\n")  # fmt: skip
    print("| start | weight error | loss at the start | loss after training | seconds |\n|---|---|---|---|---|")
    plain = None
    for loftq in (False, True):
        model = adapted(options.model, options.rank, loftq)
        error, before, started = weight_error(model, dense), loss_of(model, held), time.monotonic()
        train(model, data, options.rate, options.steps)
        seconds = time.monotonic() - started
        print(f"| {'LoftQ' if loftq else 'QLoRA'} | {error:.4f} | {before:.4f} | {loss_of(model, held):.4f} | "
              f"{seconds:.0f} |", flush=True)  # fmt: skip
        plain = plain or model
    merging(plain, dense, held, options.model)


if __name__ == "__main__":
    main()
