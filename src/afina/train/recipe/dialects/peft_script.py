"""Arguments of the scripts that PEFT and TRL come with (`python sft.py --model_name_or_path ...`): a command line, a
shell script, or the same names in YAML or JSON."""

from __future__ import annotations

import re
import shlex
from typing import Any

from .draft import ATTENTION, HF, LORA, Imported, Left, Table, computed, stored, switch

MARKS = ("model_name_or_path", "dataset_name", "use_peft", "use_peft_lora", "lora_r")


def _data(value: Any, out: Imported) -> None:
    is_file = str(value).rpartition(".")[2] in ("json", "jsonl", "csv", "parquet", "txt")
    out.values["data.train"] = str(value) if is_file or str(value).startswith((".", "/", "~")) else f"hub:{value}"


def _split(value: Any, out: Imported) -> None:
    first, *others = str(value).split(",")
    if first != "train":
        out.values["data.train"] = f"{out.values.get('data.train', '')}@{first}"
    if others:
        out.values["data.eval"] = f"{out.values.get('data.train', '').partition('@')[0]}@{others[0]}"


def _held_out(value: Any, out: Imported) -> None:
    source = str(out.values.get("data.train", ""))
    if source.startswith("hub:"):
        out.values["data.eval"] = f"{source.partition('@')[0]}@{value}"


TABLE: Table = {
    **HF,
    **LORA,
    "dataset_name": _data,
    "splits": _split,
    "dataset_train_split": _split,
    "dataset_test_split": _held_out,
    "use_peft_lora": Left("method.type says what is trained"),
    "use_peft": Left("method.type says what is trained"),
    "use_4bit_quantization": stored("nf4"),
    "use_8bit_quantization": stored("int8"),
    "use_dora": switch("method.use_dora", True),
    "bnb_4bit_compute_dtype": Left("what model.dtype says"),
    "bnb_4bit_quant_storage_dtype": Left("one byte for two numbers"),
    "bnb_4bit_quant_type": Left("model.quantize says nf4 or fp4"),
    "use_nested_quant": Left("scales are stored as they are"),
    "use_flash_attn": ATTENTION,
    "use_reentrant": Left("checkpointing is never reentrant"),
    "dataset_text_field": Left("answers are trained on; see data.prompt and data.completion"),
    "add_special_tokens": Left("the tokenizer's template decides"),
    "append_concat_token": Left("packed rows stay apart"),
    "lora_task_type": Left("task says it"),
    "use_cpu": Left("a GPU where there is one"),
    "no_cuda": computed("float32"),
}


def arguments(text: str) -> dict[str, Any] | None:
    """The `--key value` words of a command line or shell script; None where there are none."""
    plain = re.sub(r"\\\r?\n", " ", re.sub(r"(?m)^\s*#.*$", "", text))
    lines = [line for line in plain.splitlines() if " --" in line or line.lstrip().startswith("--")]
    if not lines:
        return None
    words = shlex.split(max(lines, key=len))
    script = max((i for i, word in enumerate(words) if word.endswith(".py")), default=-1)
    words = words[script + 1 :]  # what stands before it is the launcher's
    starts = [i for i, word in enumerate(words) if word.startswith("--")]
    out: dict[str, Any] = {}
    for start, end in zip(starts, [*starts[1:], len(words)], strict=True):
        key, equals, value = words[start][2:].partition("=")
        out[key.replace("-", "_")] = _value([*([value] if equals else []), *words[start + 1 : end]])
    return out


def _value(words: list[str]) -> Any:
    if len(words) != 1:
        return [_value([word]) for word in words] if words else True
    word = words[0]
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def finish(out: Imported) -> None:
    """The scripts train LoRA where one of these is given, else the whole model."""
    lora = out.source.get("use_peft_lora") or out.source.get("use_peft") or "lora_r" in out.source
    out.values.setdefault("method.type", "lora" if lora else "full")
    if not lora:
        for key in [key for key in out.values if key.startswith("method.") and key != "method.type"]:
            out.leave(key, out.values.pop(key), "without LoRA, all parameters are trained")
    if "eval_strategy" in out.source and out.source["eval_strategy"] != "steps":
        out.values.pop("evaluation.every", None)
