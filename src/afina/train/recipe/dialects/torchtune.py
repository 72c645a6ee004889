"""torchtune's YAML (0.6), whose parts name Python objects."""

from __future__ import annotations

import re
from typing import Any

from .draft import Imported, Left, Table, if_set, named_dtype, switch

MARKS = ("model._component_", "checkpointer._component_", "tokenizer._component_", "dataset._component_")


def _model(value: Any, out: Imported) -> None:
    name = str(value).rpartition(".")[2]
    out.values["method.type"] = "lora" if name.startswith(("lora_", "qlora_")) else "full"
    if name.startswith("qlora_"):
        out.values["model.quantize"] = "nf4"


def _attention(value: Any, out: Imported) -> None:
    names = ["o_proj" if name == "output_proj" else name for name in value]
    out.values["method.target_modules"] = [*names, *out.values.get("method.target_modules", [])]


def _feed_forward(value: Any, out: Imported) -> None:
    if value:
        names = ["gate_proj", "up_proj", "down_proj"]
        out.values["method.target_modules"] = [*out.values.get("method.target_modules", []), *names]


def _data(value: Any, out: Imported) -> None:
    name = str(value).rpartition(".")[2]
    if name in _BUILT_IN:
        out.values.setdefault("data.train", _BUILT_IN[name])
    if name == "preference_dataset":
        out.values["task"] = "preference"


def _source(value: Any, out: Imported) -> None:
    if value not in _FILES:
        out.values["data.train"] = f"hub:{value}"


def _files(value: Any, out: Imported) -> None:
    out.values["data.train"] = value if isinstance(value, str) else value[0]


def _columns(value: Any, out: Imported) -> None:
    out.values["data.columns"] = {ours: theirs for ours, theirs in value.items() if ours != theirs}


def _conversations(value: Any, out: Imported) -> None:
    name = "messages" if out.source.get("dataset.conversation_style") == "openai" else "conversations"
    if value != name:
        out.values["data.columns"] = {name: value}


def _scheduler(value: Any, out: Imported) -> None:
    name = re.search(r"cosine|linear|constant", str(value))
    if name:
        out.values["training.scheduler"] = name[0]


_FILES = ("json", "csv", "parquet", "text")
_BUILT_IN = {"alpaca_dataset": "hub:tatsu-lab/alpaca", "alpaca_cleaned_dataset": "hub:yahma/alpaca-cleaned"}
_OWN = Left("afina has its own")

TABLE: Table = {
    "model._component_": _model,
    "model.lora_attn_modules": _attention,
    "model.apply_lora_to_mlp": _feed_forward,
    "model.apply_lora_to_output": Left("add lm_head to method.target_modules"),
    "model.lora_rank": "method.r",
    "model.lora_alpha": "method.lora_alpha",
    "model.lora_dropout": "method.lora_dropout",
    "model.use_dora": switch("method.use_dora", True),
    "model.quantize_base": switch("model.quantize", "nf4"),
    "tokenizer._component_": _OWN,
    "tokenizer.path": Left("the tokenizer is the model's own"),
    "tokenizer.max_seq_len": "data.max_length",
    "checkpointer._component_": _OWN,
    "checkpointer.checkpoint_dir": "model.path",
    "checkpointer.checkpoint_files": Left("all files of the model's folder"),
    "checkpointer.model_type": Left("read from the model's config"),
    "checkpointer.output_dir": "output.dir",
    "checkpointer.recipe_checkpoint": Left("--resume on the command line"),
    "resume_from_checkpoint": Left("--resume on the command line"),
    "dataset._component_": _data,
    "dataset.packed": switch("training.packing", True),
    "dataset.source": _source,
    "dataset.data_files": _files,
    "dataset.column_map": _columns,
    "dataset.train_on_input": switch("training.loss_on_prompt", True),
    "dataset.split": Left("hub:NAME@SPLIT"),
    "dataset.conversation_column": _conversations,
    "dataset.conversation_style": Left("found by the columns"),
    "seed": "training.seed",
    "shuffle": Left("rows are always shuffled"),
    "batch_size": "training.batch_size",
    "epochs": if_set("training.epochs", float),
    "max_steps_per_epoch": if_set("training.max_steps", int),
    "gradient_accumulation_steps": "training.gradient_accumulation",
    "optimizer._component_": _OWN,
    "optimizer.lr": "training.learning_rate",
    "optimizer.weight_decay": "training.weight_decay",
    "optimizer.fused": _OWN,
    "lr_scheduler._component_": _scheduler,
    "lr_scheduler.num_warmup_steps": if_set("training.warmup", float),
    "loss._component_": _OWN,
    "clip_grad_norm": if_set("training.max_grad_norm", float),
    "compile": switch("training.compile", True),
    "output_dir": "output.dir",
    "dtype": named_dtype,
    "log_every_n_steps": "training.logging_steps",
    "enable_activation_checkpointing": switch("training.gradient_checkpointing", True),
    "device": Left("a GPU where there is one"),
    "metric_logger._component_": Left("metrics.jsonl and TensorBoard"),
    "metric_logger.log_dir": Left("metrics.jsonl and TensorBoard"),
    "log_peak_memory_stats": Left("always told"),
    "enable_activation_offloading": Left("not there"),
    "profiler._component_": Left("not there"),
    "profiler.enabled": Left("not there"),
}


def flat(values: dict[str, Any], within: str = "") -> dict[str, Any]:
    """Keys of parts with a dot; a mapping of columns stays one."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{within}{key}"
        out |= flat(value, f"{path}.") if isinstance(value, dict) and key != "column_map" else {path: value}
    return out


def resolved(values: dict[str, Any]) -> dict[str, Any]:
    """`${output_dir}` and the like filled in."""

    def fill(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return re.sub(r"\$\{([\w.]+)\}", lambda found: str(values.get(found[1], found[0])), value)

    return {key: fill(value) for key, value in values.items()}


def finish(out: Imported) -> None:
    """torchtune writes to its checkpointer's folder, if there is none for all."""
    if "output_dir" in out.source:
        out.values["output.dir"] = out.source["output_dir"]
