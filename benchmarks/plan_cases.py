"""The runs that the plan is held to: methods, shapes, batches, checkpointing, storages and tasks."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        model: a family of `MODELS`.
        tokens: of a row; a fifth of them are the answer.
        rows: of a batch.
        uneven: whether rows have four lengths, up to `tokens`.
        settings: the recipe's own, `section__key`.
    """

    model: str = "llama"
    task: str = "causal_lm"
    method: dict[str, Any] = field(default_factory=lambda: {"type": "lora", "r": 8, "target_modules": "all-linear"})
    tokens: int = 256
    rows: int = 2
    uneven: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def _of(kind: str, **settings: Any) -> dict[str, Any]:
    return {"type": kind, **settings}


def _of_answers(tokens: int) -> dict[str, Any]:
    rewards = ["format:[a-m].*"]
    return {"reinforcement__rewards": rewards, "reinforcement__generations": 2, "reinforcement__answer_tokens": tokens}


_LORA = _of("lora", r=8, target_modules="all-linear")
_CHECK = {"training__gradient_checkpointing": True}
_BF16 = {"model__dtype": "bfloat16"}
_NF4 = {"model__quantize": "nf4", **_BF16}

CASES = {
    # shapes and batches
    "lora": Case(),
    "lora, 8 rows of 64": Case(rows=8, tokens=64),
    "lora, 1 row of 768": Case(rows=1, tokens=768),
    "lora, wide": Case("wide", rows=4, tokens=128),
    "lora, deep": Case("deep"),
    "lora, large vocabulary": Case("vocabulary"),
    "lora, rank 64": Case(method={**_LORA, "r": 64}),
    "lora, rows of four lengths": Case(uneven=True),
    "lora, 4 batches a step": Case(settings={"training__gradient_accumulation": 4}),
    "lora, loss on prompts": Case(settings={"training__loss_on_prompt": True}),
    # dtypes and storages
    "lora, bf16": Case(settings=_BF16),
    "lora, bf16, wide": Case("wide", rows=4, tokens=128, settings=_BF16),
    "lora, bf16, 1 row of 768": Case(rows=1, tokens=768, settings=_BF16),
    "lora, nf4": Case(settings=_NF4),
    "lora, nf4, wide": Case("wide", rows=4, tokens=128, settings=_NF4),
    "lora, int8wo": Case(settings={"model__quantize": "int8wo", **_BF16}),
    # recomputing
    "lora, recomputed": Case(settings=_CHECK),
    "lora, recomputed, 1 row of 768": Case(rows=1, tokens=768, settings=_CHECK),
    "lora, recomputed, bf16": Case(settings={**_CHECK, **_BF16}),
    "lora, recomputed, wide": Case("wide", rows=4, tokens=128, settings=_CHECK),
    "full, recomputed": Case(method=_of("full"), rows=1, settings=_CHECK),
    # methods
    "full": Case(method=_of("full"), rows=1),
    "full, wide": Case("wide", method=_of("full"), rows=1, tokens=128),
    "dora": Case(method={**_LORA, "use_dora": True}),
    "ia3": Case(method=_of("ia3")),
    "prompt_tuning": Case(method=_of("prompt_tuning", num_virtual_tokens=20)),
    "prefix_tuning": Case(method=_of("prefix_tuning", num_virtual_tokens=20)),
    "last_layers": Case(method=_of("last_layers")),
    "vera": Case(method=_of("vera", r=64)),
    "oft": Case(method=_of("oft", oft_block_size=32, target_modules="all-linear")),
    "loha": Case(method=_of("loha", r=8, target_modules="all-linear")),
    "bitfit": Case("encoder", "sequence_classification", _of("bitfit"), 128, 6),
    # tasks
    "lora, classifier": Case("encoder", "sequence_classification", _LORA, 128, 6),
    "lora, pretraining": Case(task="pretraining"),
    "lora, seq2seq": Case("t5", "seq2seq", _LORA, 256, 4),
    "lora, embeddings": Case("plain_encoder", "embeddings", _LORA, 128, 4),
    "lora, preference": Case(task="preference", rows=1),
    "lora, reward": Case(task="reward", rows=1),
    "lora, kto": Case(task="kto", rows=2, tokens=128),
    "lora, orpo": Case(task="orpo", rows=1, tokens=128),
    "lora, grpo": Case(task="grpo", rows=4, tokens=128, settings=_of_answers(96)),
}

SIZES = {
    "llama": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "vocab_size": 16384},
    "wide": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 2, "vocab_size": 4096},
    "encoder": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "vocab_size": 16384},
    "deep": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 16, "vocab_size": 4096},
    "vocabulary": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "vocab_size": 65536},
    "plain_encoder": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "vocab_size": 16384},
    "t5": {"d_model": 384, "d_ff": 1024, "num_layers": 4, "d_kv": 64, "num_heads": 6, "vocab_size": 16384},
}
_TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
_TINY_T5 = {"d_model": 64, "d_ff": 128, "num_layers": 2, "d_kv": 16, "num_heads": 4, "vocab_size": 512}


def _model(family: str, tiny: bool) -> Any:
    import transformers as t

    ends = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    sizes = SIZES[family] if not tiny else _TINY_T5 if family == "t5" else _TINY
    if family == "t5":
        return t.T5ForConditionalGeneration(t.T5Config(**sizes, **ends, decoder_start_token_id=0, dropout_rate=0.0))
    heads = sizes["hidden_size"] // (16 if tiny else 64)
    if family.endswith("encoder"):
        return t.BertModel(t.BertConfig(**sizes, num_attention_heads=heads, max_position_embeddings=2048, **ends))
    return t.LlamaForCausalLM(t.LlamaConfig(**sizes, num_attention_heads=heads, num_key_value_heads=heads // 2,
                                            max_position_embeddings=4096, tie_word_embeddings=True,
                                            **ends))  # fmt: skip


def byte_tokenizer() -> Any:
    """A token for every byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<bos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")


def write(case: Case, folder: Path, *, tiny: bool) -> Path:
    """The recipe of a case with its model and rows in a folder, or of a tiny run of the same kind."""
    import torch
    import yaml

    torch.manual_seed(0)
    model = _model(case.model, tiny)
    model.to(getattr(torch, case.settings.get("model__dtype", "float32"))).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    del model
    tokens, rows = (32, 2) if tiny else (case.tokens, case.rows)
    steps = 2 if tiny else 6
    lines = [json.dumps(_row(case.task, tokens // (1 + i % 4 * case.uneven), i)) for i in range(rows * steps + 2)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    recipe: dict[str, Any] = {
        "task": case.task,
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {"train": str(folder / "rows.jsonl"), "eval_split": 0.0, "max_length": tokens},
        "method": {**case.method},
        "training": {"learning_rate": 1e-4, "batch_size": rows, "max_steps": steps, "save_steps": 1000},
        "evaluation": {"enabled": False},
        "output": {"dir": str(folder / "out")},
    }
    for key, value in case.settings.items():
        section, _, inner = key.partition("__")
        recipe.setdefault(section, {})[inner] = value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def _row(task: str, tokens: int, number: int) -> dict[str, Any]:
    draw = random.Random(number)
    answer = tokens // 5

    def text(length: int) -> str:
        return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=length))

    prompt = text(tokens - answer - 2)
    if task in ("preference", "orpo"):
        return {"prompt": prompt, "chosen": text(answer), "rejected": text(answer)}
    if task == "reward":
        return {"prompt": prompt, "chosen": text(answer), "rejected": text(answer)}
    if task == "kto":
        return {"prompt": prompt, "completion": text(answer), "label": bool(number % 2)}
    if task == "embeddings":
        return {"anchor": text(tokens - 2), "positive": text(tokens - 2)}
    if task == "sequence_classification":
        return {"text": text(tokens - 2), "label": "ab"[number % 2]}
    if task == "pretraining":
        return {"text": text(tokens - 2)}
    if task == "grpo":
        return {"prompt": text(tokens - 2)}
    return {"prompt": prompt, "completion": text(answer)}
