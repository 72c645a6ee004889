"""LLaMA-Factory's YAML (0.9)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .draft import (
    ANSWERS,
    ATTENTION,
    HF,
    LORA,
    TEMPLATE,
    Imported,
    Left,
    Table,
    if_set,
    new_tokens,
    saved,
    sources,
    switch,
    targets,
)
from .draft import task as task_named

MARKS = ("stage", "finetuning_type", "cutoff_len", "lora_target", "dataset_dir", "template", "lora_rank")


def _method(value: Any, out: Imported) -> None:
    if value in ("lora", "full", "oft"):
        out.values["method.type"] = value
    else:
        out.leave("finetuning_type", value, "last_layers trains the last layers: method.type=last_layers")


def _loss(value: Any, out: Imported) -> None:
    if value == "orpo":
        out.values["task"] = "orpo"
    elif value != "sigmoid":
        out.leave("pref_loss", value, "DPO's own loss (sigmoid) and ORPO's are there")


def _bits(value: Any, out: Imported) -> None:
    four = "fp4" if out.source.get("quantization_type") == "fp4" else "nf4"
    kind = {4: four, 8: "int8"}.get(int(value)) if value else None
    if kind is not None:
        out.values["model.quantize"] = kind
    elif value:
        out.leave("quantization_bit", value, "4 and 8 bits are there")


def _rows(key: str) -> Any:
    def put(value: Any, out: Imported) -> None:
        names = value.replace(",", " ").split() if isinstance(value, str) else list(value)
        folder = Path(str(out.source.get("dataset_dir", "data")))
        out.values[key] = sources([_source(name, folder, key, out) for name in names])

    return put


def _source(name: str, folder: Path, key: str, out: Imported) -> str:
    found = _described(name, folder)
    if found is None:
        if not Path(name).is_file():
            out.look.append(f"{key}: {name!r} stands in no dataset_info.json that was found here: write its path")
        return name
    path, columns = found
    if columns and out.values.setdefault("data.columns", columns) != columns:
        out.look.append(f"data.columns: one mapping for all data sets; {name} has {columns}")
    return path


def _described(name: str, folder: Path) -> tuple[str, dict[str, str]] | None:
    """Path and columns of a data set in `dataset_info.json`."""
    try:
        entry = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))[name]
        columns = {_COLUMNS[k]: v for k, v in entry.get("columns", {}).items() if k in _COLUMNS and _COLUMNS[k] != v}
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    if "file_name" in entry:
        return str(folder / entry["file_name"]), columns
    url = entry.get("hf_hub_url")
    return None if url is None else (f"hub:{url}", columns)


_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "messages": "conversations",
    "chosen": "chosen",
    "rejected": "rejected",
}
_TASKS = {"sft": "causal_lm", "dpo": "preference", "rm": "reward", "kto": "kto", "pt": "pretraining"}

TABLE: Table = {
    **HF,
    **LORA,
    "stage": task_named(_TASKS),
    "finetuning_type": _method,
    "lora_rank": "method.r",
    "lora_target": targets,
    "additional_target": saved,
    "pissa_init": switch("method.init_lora_weights", "pissa"),
    "quantization_bit": _bits,
    "quantization_method": Left("bitsandbytes' nf4 and int8 are what 4 and 8 bits mean here"),
    "dataset": _rows("data.train"),
    "eval_dataset": _rows("data.eval"),
    "dataset_dir": Left("dataset_info.json was looked for there"),
    "cutoff_len": "data.max_length",
    "max_samples": "data.max_train_rows",
    "val_size": "data.eval_split",
    "pref_beta": "training.beta",
    "neat_packing": switch("training.packing", True),
    "default_system": "data.system",
    "template": TEMPLATE,
    "flash_attn": ATTENTION,
    "preprocessing_num_workers": Left("rows are prepared by one process"),
    "overwrite_cache": Left("rows are prepared at every run"),
    "plot_loss": Left("loss.png is always made"),
    "train_on_prompt": switch("training.loss_on_prompt", True),
    "adapter_name_or_path": "model.adapter",
    "add_tokens": new_tokens,
    "pref_loss": _loss,
    "mask_history": Left(ANSWERS),
    "include_num_input_tokens_seen": Left("tokens are counted"),
    "quantization_type": Left("nf4 or fp4, where quantization_bit is 4"),
    "early_stopping_steps": if_set("training.early_stopping", int),
}


def finish(out: Imported) -> None:
    """What LLaMA-Factory means where it says nothing."""
    if out.values.setdefault("method.type", "lora") == "lora":
        rank = out.values.setdefault("method.r", 8)
        out.values.setdefault("method.lora_alpha", 2 * rank)
        out.values.setdefault("method.target_modules", "all-linear")
    if out.source.get("eval_strategy") != "steps" and out.source.get("evaluation_strategy") != "steps":
        out.values.pop("evaluation.every", None)
    out.values.setdefault("data.max_length", 2048)
