"""Axolotl's YAML (0.12)."""

from __future__ import annotations

from typing import Any

from .draft import ATTENTION, HF, LORA, TEMPLATE, Imported, Left, Table, if_set, saved, sources, switch
from .draft import task as task_named

MARKS = ("base_model", "sequence_len", "micro_batch_size", "sample_packing", "datasets", "val_set_size", "rl")


def _adapter(value: Any, out: Imported) -> None:
    if value in ("lora", "qlora"):
        out.values["method.type"] = "lora"
    elif value:
        out.leave("adapter", value, "afina methods lists what there is")
    if value == "qlora":
        out.values["model.quantize"] = "nf4"


def _rows(key: str) -> Any:
    def put(value: Any, out: Imported) -> None:
        sets = value if isinstance(value, list) else [value]
        out.values[key] = sources([_source(one) for one in sets])
        for one in sets:
            _columns(one, str(one.get("type", "")), out)

    return put


def _source(one: dict[str, Any]) -> str:
    path, files = str(one.get("path", "")), one.get("data_files")
    if path in ("json", "csv", "parquet") and files:
        path = files if isinstance(files, str) else files[0]
    if path.startswith((".", "/", "~")) or path.rpartition(".")[2] in _FILES:
        return path
    split = f"@{one['split']}" if one.get("split") not in (None, "train") else ""
    name = f"/{one['name']}" if one.get("name") else ""
    return f"hub:{path}{name}{split}"


def _columns(one: dict[str, Any], kind: str, out: Imported) -> None:
    # Conversations are known by either name, so that only other names are a mapping.
    own = {ours: one[theirs] for theirs, ours in _FIELDS.items()
           if one.get(theirs) not in (None, ours) and (ours, one[theirs]) != ("messages", "conversations")}  # fmt: skip
    if own and out.values.setdefault("data.columns", own) != own:
        out.look.append(f"data.columns: one mapping for all data sets; {one.get('path')} has {own}")
    if kind not in _KINDS:
        out.look.append(f"data: rows of the type {kind!r} are taken by their columns; see afina data")
    for key, value in one.items():
        if key not in _READ and key not in _FIELDS:
            out.leave(f"datasets.{key}", value, "not read")


_FILES = ("json", "jsonl", "csv", "tsv", "parquet", "txt")
_FIELDS = {
    "field_messages": "messages",
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
}
_KINDS = ("alpaca", "chat_template", "sharegpt", "")
_READ = ("path", "type", "split", "name", "data_files", "ds_type", "chat_template")
_TASKS = {"dpo": "preference", "kto": "kto", "orpo": "orpo", "grpo": "grpo"}

TABLE: Table = {
    **HF,
    **LORA,
    "base_model": "model.path",
    "revision_of_model": "model.revision",
    "adapter": _adapter,
    "datasets": _rows("data.train"),
    "test_datasets": _rows("data.eval"),
    "val_set_size": "data.eval_split",
    "sequence_len": "data.max_length",
    "sample_packing": switch("training.packing", True),
    "lora_target_linear": switch("method.target_modules", "all-linear"),
    "lora_modules_to_save": saved,
    "peft_use_dora": switch("method.use_dora", True),
    "peft_use_rslora": switch("method.use_rslora", True),
    "micro_batch_size": "training.batch_size",
    "eval_batch_size": "evaluation.batch_size",
    "num_epochs": if_set("training.epochs", float),
    "optimizer": "training.optimizer",
    "lr_scheduler": "training.scheduler",
    "rl": task_named(_TASKS),
    "rl_beta": "training.beta",
    "dpo_beta": "training.beta",
    "early_stopping_patience": if_set("training.early_stopping", int),
    "reward_model": switch("task", "reward"),
    "default_system_message": "data.system",
    "train_on_inputs": switch("training.loss_on_prompt", True),
    "tokens": "model.new_tokens",
    "lora_model_dir": "model.adapter",
    "pad_to_sequence_len": Left("batches are padded to their longest row"),
    "flash_attention": ATTENTION,
    "sdp_attention": ATTENTION,
    "xformers_attention": ATTENTION,
    "chat_template": TEMPLATE,
    "tf32": Left("torch's own choice"),
    "eval_sample_packing": Left("held-out rows stay apart"),
    "strict": Left("recipes are always strict"),
    "dataset_prepared_path": Left("rows are prepared at every run"),
    "evals_per_epoch": Left("evaluation.every counts steps"),
    "saves_per_epoch": Left("training.save_steps counts steps"),
    "wandb_project": Left("training.report_to: [wandb], with WANDB_PROJECT set"),
    "model_type": Left("the model's class is found by itself"),
    "tokenizer_type": Left("found by itself"),
}


def finish(out: Imported) -> None:
    """What Axolotl means where it says nothing; without an adapter all parameters are trained."""
    if not out.source.get("adapter"):
        out.values["method.type"] = "full"
        for key in [key for key in out.values if key.startswith("method.") and key != "method.type"]:
            out.leave(key, out.values.pop(key), "without adapter, all parameters are trained")
    elif out.values.get("model.quantize") == "int8" and out.source.get("adapter") == "qlora":
        out.values["model.quantize"] = "nf4"
