"""What a foreign recipe has become so far, and the ways in which a key can be taken over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Left(NamedTuple):
    """A key that is left out, and why that is right or what to do instead."""

    why: str


@dataclass
class Imported:
    """A recipe on its way here.

    Attributes:
        values: "section.key" -> value.
        left: "key: value" -> why it has no counterpart.
        look: what a person should look at.
        source: all keys of the foreign recipe.
    """

    dialect: str
    values: dict[str, Any] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    look: list[str] = field(default_factory=list)
    source: Mapping[str, Any] = field(default_factory=dict)

    def leave(self, key: str, value: object, why: str) -> None:
        """Say that a key has no counterpart."""
        self.left[f"{key}: {value}"] = why


Rule = str | Left | Callable[[Any, Imported], None]
"""Our name of the key, or why it is left out, or what it does to the recipe."""
Table = Mapping[str, Rule]


def targets(value: Any, out: Imported) -> None:
    """Modules by name: a list, words with commas between them, or all."""
    names = value.replace(",", " ").split() if isinstance(value, str) else list(value)
    out.values["method.target_modules"] = "all-linear" if names in (["all"], ["all-linear"]) else names


def saved(value: Any, out: Imported) -> None:
    """Modules that are trained as a whole."""
    out.values["method.modules_to_save"] = value.replace(",", " ").split() if isinstance(value, str) else list(value)


def new_tokens(value: Any, out: Imported) -> None:
    """Tokens to add: a list, or words with commas between them."""
    out.values["model.new_tokens"] = value.split(",") if isinstance(value, str) else list(value)


def sources(paths: list[str]) -> str | list[dict[str, str]]:
    """What `data.train` says of them: one as it stands, several as a list; those of one name are called by path."""
    if len(paths) == 1:
        return paths[0]
    stems = [Path(path.partition("#")[0]).stem for path in paths]
    return [{"path": path, **({"name": path} if stems.count(stem) > 1 else {})}
            for path, stem in zip(paths, stems, strict=True)]  # fmt: skip


def stored(kind: str) -> Rule:
    """A switch for the storage of the base."""

    def put(value: Any, out: Imported) -> None:
        if value:
            out.values["model.quantize"] = kind

    return put


def computed(kind: str) -> Rule:
    """A switch for the dtype of the base; `auto` is the default here."""

    def put(value: Any, out: Imported) -> None:
        if value is True:
            out.values["model.dtype"] = kind

    return put


def named_dtype(value: Any, out: Imported) -> None:
    """A dtype by any of its names."""
    names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    name = str(value).removeprefix("torch.")
    out.values["model.dtype"] = names.get(name, name)


def if_set(key: str, kind: Callable[[Any], Any] = lambda value: value) -> Rule:
    """A number that counts only if it is above zero."""

    def put(value: Any, out: Imported) -> None:
        if value is not None and float(value) > 0:
            out.values[key] = kind(value)

    return put


def switch(key: str, value: Any, without: str | None = None) -> Rule:
    """Another value of `key` where the switch is on; off says nothing, or `without` has to be looked at."""

    def put(given: Any, out: Imported) -> None:
        if given:
            out.values[key] = value
        elif without is not None:
            out.look.append(without)

    return put


def task(names: Mapping[str, str]) -> Rule:
    """What is trained, by the other tool's name."""

    def put(value: Any, out: Imported) -> None:
        from ..task_types import TASK_TYPES

        if names.get(str(value)) in TASK_TYPES:
            out.values["task"] = names[str(value)]
        elif value:
            out.leave("task", value, "there is no such task here")

    return put


def trackers(value: Any, out: Imported) -> None:
    """Names of trackers; TensorBoard is always there."""
    names = [value] if isinstance(value, str) else list(value or ())
    names = [name for name in names if name not in ("none", "tensorboard", "all")]
    if names:
        out.values["training.report_to"] = names


ATTENTION = Left("the fastest attention of the machine is chosen by itself")
TEMPLATE = Left("the chat template comes with the model's tokenizer")
ANSWERS = "the loss is taken on answers only"

HF: Table = {
    "model_name_or_path": "model.path",
    "model_revision": "model.revision",
    "torch_dtype": named_dtype,
    "dtype": named_dtype,
    "output_dir": "output.dir",
    "learning_rate": "training.learning_rate",
    "num_train_epochs": if_set("training.epochs", float),
    "max_steps": if_set("training.max_steps", int),
    "per_device_train_batch_size": "training.batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation",
    "lr_scheduler_type": "training.scheduler",
    "warmup_ratio": if_set("training.warmup", float),
    "warmup_steps": if_set("training.warmup", float),
    "weight_decay": if_set("training.weight_decay", float),
    "max_grad_norm": if_set("training.max_grad_norm", float),
    "optim": "training.optimizer",
    "seed": "training.seed",
    "logging_steps": if_set("training.logging_steps", lambda value: max(1, int(value))),
    "save_steps": if_set("training.save_steps", int),
    "save_total_limit": "training.keep_checkpoints",
    "gradient_checkpointing": switch("training.gradient_checkpointing", True),
    "bf16": computed("bfloat16"),
    "fp16": computed("float16"),
    "per_device_eval_batch_size": "evaluation.batch_size",
    "eval_steps": if_set("evaluation.every", int),
    "report_to": trackers,
    "dataloader_num_workers": if_set("training.workers", int),
    "group_by_length": switch("training.group_by_length", True),
    "packing": switch("training.packing", True),
    "max_seq_length": "data.max_length",
    "max_length": "data.max_length",
    "load_in_4bit": stored("nf4"),
    "load_in_8bit": stored("int8"),
    "beta": "training.beta",
    "overwrite_output_dir": Left("--overwrite on the command line"),
    "resume_from_checkpoint": Left("--resume on the command line"),
    "do_train": Left("afina train trains"),
    "do_eval": Left("held-out rows are measured before and after"),
    "save_strategy": Left("a checkpoint every epoch, or every training.save_steps"),
    "eval_strategy": Left("evaluation.every says how often"),
    "evaluation_strategy": Left("evaluation.every says how often"),
    "logging_strategy": Left("training.logging_steps says how often"),
    "log_level": Left("the run says what matters"),
    "logging_dir": Left("TensorBoard's files are in output.dir/tensorboard"),
    "push_to_hub": Left("nothing is uploaded"),
    "attn_implementation": ATTENTION,
    "trust_remote_code": Left("code that comes with a model is not run"),
    "gradient_checkpointing_kwargs": Left("checkpointing is never reentrant"),
    "ddp_timeout": Left("training is on one device"),
    "remove_unused_columns": Left("columns are chosen by data.*"),
}
"""What transformers' own arguments are called here."""

LORA: Table = {
    "lora_r": "method.r",
    "lora_alpha": "method.lora_alpha",
    "lora_dropout": "method.lora_dropout",
    "lora_target_modules": targets,
    "lora_modules_to_save": saved,
    "use_rslora": switch("method.use_rslora", True),
    "use_dora": switch("method.use_dora", True),
}
