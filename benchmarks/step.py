"""One training step of SmolLM2-135M's shapes (random weights): afina, its peers, and the floor.

    python -m benchmarks.step ROW [--rounds N]       one row, all contenders interleaved
    python -m benchmarks.step ROW --memory NAME      peak memory of one contender, in a process of its own

The floor is the frozen model's own matrix products, forward and input gradients, at the same shapes and dtype.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .timing import interleaved, peak_rss, rss

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class Row:
    """What one row measures."""

    dtype: str
    config: str = "LoraConfig"
    options: dict[str, Any] = field(default_factory=lambda: {"r": 16, "lora_alpha": 32, "target_modules": LINEARS})
    batch: int = 4
    tokens: int = 256
    checkpointing: bool = False
    quantised: bool = False
    full: bool = False
    compiled: bool = False


_LORA = {"r": 16, "lora_alpha": 32, "target_modules": LINEARS}
ROWS = {
    "lora-float32": Row("float32", compiled=True),
    "lora-bfloat16": Row("bfloat16"),
    "lora-float32-long": Row("float32", batch=1, tokens=2048),
    "lora-bfloat16-long": Row("bfloat16", batch=1, tokens=2048),
    "lora-bfloat16-short": Row("bfloat16", batch=16, tokens=64),
    "lora-bfloat16-checkpointing": Row("bfloat16", checkpointing=True),
    "dora-bfloat16": Row("bfloat16", options={**_LORA, "use_dora": True}),
    "ia3-bfloat16": Row("bfloat16", "IA3Config", {}),
    "prompt-bfloat16": Row("bfloat16", "PromptTuningConfig", {"num_virtual_tokens": 20}),
    "qlora-nf4": Row("bfloat16", quantised=True),
    "full-bfloat16": Row("bfloat16", full=True),
}


def base(row: Row, layers: int = 30) -> Any:
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    sizes = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, rope_theta=1e5, max_position_embeddings=8192,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(sizes).to(getattr(torch, row.dtype))
    if not row.quantised:
        return model
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        return LlamaForCausalLM.from_pretrained(folder, quantization_config=how, dtype=torch.bfloat16)


def floor(model: Any, row: Row) -> Any:
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    dtype, count = getattr(torch, row.dtype), row.batch * row.tokens
    inputs = {n: torch.randn(count, n, dtype=dtype) for n in {m.in_features for m in layers}}
    grads = {n: torch.randn(count, n, dtype=dtype) for n in {m.out_features for m in layers}}
    weights = [torch.randn(m.out_features, m.in_features, dtype=dtype) for m in layers] if row.quantised else [
        m.weight.detach() for m in layers]  # fmt: skip

    def run() -> None:
        for weight in weights:
            out, width = weight.shape
            torch.mm(inputs[width], weight.T)
            torch.mm(grads[out], weight)

    return torch.no_grad()(run)


def step(model: Any, row: Row) -> Any:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 49152, (row.batch, row.tokens), generator=generator)
    labels = ids.clone()
    labels[:, : 2 * row.tokens // 3] = -100
    if row.checkpointing:
        inner = model.get_base_model()
        inner.gradient_checkpointing_enable({"use_reentrant": False})
        inner.enable_input_require_grads()
    parameters = [p for p in model.train().parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)  # the default of transformers' Trainer

    def run() -> float:
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return run


def contender(name: str, row: Row, model: Any) -> Any:
    """peft; afina as it is; through the plain call with `speed_up`; and with the loss that needs no logits."""
    import peft

    import afina
    from afina.kernels.speed import speed_up

    model = copy.deepcopy(model)
    if row.full:
        adapted = model
    else:
        library = peft if name == "peft" else afina
        adapted = library.get_peft_model(model, getattr(library, row.config)(task_type="CAUSAL_LM", **row.options))
    if name.startswith("afina +"):
        speed_up(adapted, keep_logits="loss" not in name, steps=10**6 if name.endswith("compiled") else 0)
    return step(adapted, row)


NAMES = ("peft", "afina", "afina + speed_up", "afina + speed_up, loss alone")
COMPILED = "afina + speed_up, loss alone, compiled"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", choices=(*NAMES, COMPILED))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    row = ROWS[given.row]
    model = base(row)
    if given.memory:
        run = contender(given.memory, row, model)
        del model
        before = rss()
        run()
        run()
        print("RESULT " + json.dumps({"peak_above_weights": peak_rss() - before}))
        return
    runs = {n: contender(n, row, model) for n in (*NAMES, *((COMPILED,) if row.compiled else ()))}
    losses = {n: run() for n, run in runs.items()}
    times = interleaved({"floor": floor(model, row), **runs}, given.rounds, warm=True)
    print("RESULT " + json.dumps({"times": times, "first_loss": losses}))


if __name__ == "__main__":
    main()
