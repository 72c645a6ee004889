"""An adapter seen without its base: what it holds, where it comes from, and whether it fits a base."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.config import PeftConfig, TaskType
from ...core.disk.adapter_file import AdapterFile
from ...core.disk.checkpoint import open_adapter
from ..recipe.task_types import TASK_TYPES, of_task_type
from ..report.output import REPORT
from ..tasks import named
from .look_model import on_meta

_CLASSIFIER = "Classification"
"""How transformers' classes end that classify; no task type names those of images and sounds."""
_PLAIN = ("peft_type", "task_type", "base_model_name_or_path", "inference_mode", "peft_version", "revision")


@dataclass(frozen=True)
class AdapterLook:
    """What an adapter's files say.

    Attributes:
        method: its name, as registered.
        settings: the config's fields that differ from the method's defaults.
        base: the base model that it names, or None.
        tensors, parameters, size_bytes: how many, of how many numbers, in how large a file.
        dtypes: how many tensors of each dtype.
        origin: what is known of its training, a line each.
    """

    method: str
    task: str
    settings: dict[str, Any]
    base: str | None
    tensors: int
    parameters: int
    size_bytes: int
    dtypes: dict[str, int]
    origin: tuple[str, ...]


def look(folder: Path) -> AdapterLook:
    """Open an adapter's folder and check it as far as that needs no model.

    Raises:
        CheckpointError, ConfigError: a file is missing or damaged, or they do not belong together.
    """
    file = open_adapter(folder)
    config, shapes = file.config, file.shapes()
    return AdapterLook(
        method=config.method_type, task=_task(config) or "none", settings=_settings(config),
        base=config.base_model_name_or_path, tensors=len(shapes),
        parameters=sum(math.prod(shape) for shape in shapes.values()), size_bytes=file.path.stat().st_size,
        dtypes=dict(Counter(file.header.dtypes.values())), origin=tuple(_origin(folder, file)),
    )  # fmt: skip


def _task(config: PeftConfig) -> str:
    return str(getattr(config.task_type, "value", config.task_type or ""))


def _settings(config: PeftConfig) -> dict[str, Any]:
    usual = type(config)().to_dict()
    own = config.to_dict()
    return {k: v for k, v in own.items() if k not in _PLAIN and v != usual.get(k) and v not in (None, {}, [])}


def _origin(folder: Path, file: AdapterFile) -> list[str]:
    out = []
    facts = file.notes.get("base")
    if isinstance(facts, dict):
        known = [f"{k} {facts[k]}" for k in ("class", "hidden_size", "num_hidden_layers") if k in facts]
        out.append("trained on " + ", ".join(known) + (", weights recorded" if "weights" in facts else ""))
    if (folder / REPORT).is_file():
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        training, after = report["training"], report.get("after") or {}
        out.append(f"by afina {report['versions']['afina']}: {training['steps']} steps, {training['seconds']} s")
        if after.get("accuracy") is not None:
            out.append(f"accuracy {after['accuracy']:.3f} on {after['rows']} held-out rows")
    return out or ["nothing is recorded"]


def check_fit(folder: Path, base: str) -> int:
    """Load the adapter on the base without the base's weights, and return how many tensors found their place.

    Names, shapes and the recorded facts of the base are compared; the weights' values are not.

    Raises:
        CheckpointError, TargetError, ConfigError: it does not fit; the first tensor or fact that differs is named.
    """
    from ...core.model.peft_model import PeftModel

    file = open_adapter(folder)
    settings: dict[str, Any] = {}
    made_for = _task(file.config)
    kind = named(of_task_type(made_for)).loader if made_for in TASK_TYPES.values() else None
    named_class = str((file.config.auto_mapping or {}).get("base_model_class"))
    if file.config.task_type is None and named_class.endswith(_CLASSIFIER):
        kind = named_class
    if kind == named_class or file.config.task_type in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS):
        names = {number: f"LABEL_{number}" for number in range(_labels(file))}
        settings |= {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    model = on_meta(base, kind, **settings)
    PeftModel.from_pretrained(model, folder, low_cpu_mem_usage=True)
    return len(file.shapes())


def _labels(file: AdapterFile) -> int:
    """Outputs of the classification head that the file holds; 2, transformers' own default, where it holds none."""
    heads = ("score.weight", "classifier.weight", "classifier.out_proj.weight", "classifier.1.weight",
             "classifier.dense.weight")  # fmt: skip
    return next((shape[0] for name, shape in file.shapes().items() if name.endswith(heads)), 2)
