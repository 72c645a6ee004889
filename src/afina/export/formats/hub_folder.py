"""An adapter as it is shown on the hub: its files, and a card with what was measured, the licence and the base's id.

No path of this machine goes along: the base is named by its id there, in the card and in the config.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any, ClassVar

from ...core.disk.checkpoint import save_adapter
from ...core.hosts.routing import routers
from ...errors import ConfigError
from ...train.report.output import REPORT
from ...train.report.results import measured
from ...train.tasks.base import Known
from ...version import __version__
from ..contract import ANY, TOLERANCES, Comparison, Format, Subject
from ..merged import compare, encoded, logits

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PIPELINES = {"causal_lm": "text-generation", "pretraining": "text-generation", "seq2seq": "text2text-generation",
              "sequence_classification": "text-classification", "token_classification": "token-classification",
              "extractive_qa": "question-answering", "image_classification": "image-classification",
              "embeddings": "sentence-similarity"}  # fmt: skip
CARD = "README.md"


class Hub(Format):
    """`adapter_config.json`, `adapter_model.safetensors`, the tokenizer and `README.md`. Any method."""

    name: ClassVar[str] = "hub"
    target: ClassVar[str] = "afina"
    holds: ClassVar[str] = ANY
    writes: ClassVar[bool] = False
    module: ClassVar[str] = "afina"
    program: ClassVar[str] = ""

    def refusal(self, subject: Subject) -> str | None:
        """Only what stands on other adapters is refused.

        Raises:
            ConfigError: the card would have no licence, or no id of the base.
        """
        check_card(subject.licence, subject.hub_base, subject.trained)
        found = super().refusal(subject)
        if found is not None:
            return found
        router = routers(subject.trained.model.base_model).get(subject.name)
        if router is not None and router.routes:
            return "it routes among other adapters, which its own files do not have"
        return None

    def write(self, subject: Subject, folder: Path) -> None:
        model = subject.trained.model
        config = copy.deepcopy(model.peft_config[subject.name])
        config.base_model_name_or_path, config.inference_mode = base_id(subject), True
        save_adapter(model, folder, subject.name, config)
        subject.trained.prompter.keep(folder)
        (folder / CARD).write_text(card(subject), encoding="utf-8")

    def check(self, subject: Subject, folder: Path) -> Comparison:
        """The files on the base again."""
        from ...core.model.peft_model import PeftModel

        model, probes = subject.trained.model, encoded(subject.trained)
        expected = logits(model, probes)
        base = model.unload()
        found = compare(expected, logits(PeftModel.from_pretrained(base, folder), probes))
        return Comparison(self.target, __version__, f"outputs for {found.probes} texts", found.agreement,
                          found.difference, None, TOLERANCES["f32"])  # fmt: skip


def check_card(licence: str | None, hub_base: str | None, known: Known) -> None:
    """Refuse a card without a licence, or without an id of the base.

    Raises:
        ConfigError: says which.
    """
    if not licence:
        raise ConfigError("a card needs a licence", where="--licence", expected="as the hub writes it: apache-2.0")
    _id_of(hub_base, known.recipe.model.path)


def base_id(subject: Subject) -> str:
    """The base's id on the hub.

    Raises:
        ConfigError: it is not known, or no id.
    """
    return _id_of(subject.hub_base, subject.trained.recipe.model.path)


def _id_of(given: str | None, path: str) -> str:
    if given is not None and not _ID.fullmatch(given):
        raise ConfigError("no id of a model on the hub", where="--hub-base", got=given, expected="OWNER/NAME")
    if given is not None:
        return given
    if not _ID.fullmatch(path) or Path(path).exists():
        raise ConfigError("the base was read from this machine, which a card cannot name", where="model.path",
                          got=path, fix="--hub-base OWNER/NAME")  # fmt: skip
    return path


def card(subject: Subject) -> str:
    """The card: its head as the hub reads it, what was measured, how it is used."""
    trained, base = subject.trained, base_id(subject)
    config = trained.model.peft_config[subject.name]
    method = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    file = trained.folder / REPORT
    values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    head: dict[str, Any] = {
        "base_model": base, "base_model_relation": "adapter", "library_name": "peft", "license": subject.licence,
        "tags": [method, "afina", f"base_model:adapter:{base}"],
    }  # fmt: skip
    if (pipeline := _PIPELINES.get(trained.task.name)) is not None:
        head["pipeline_tag"] = pipeline
    title = re.sub(r"[-_]+", " ", trained.folder.absolute().name)
    if values is not None and values.get("after"):
        head["model-index"] = [_measured(title, trained, values, pipeline or trained.task.name)]
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()), "---", ""]
    lines += [f"# {title}", "", f"An adapter ({method}) for [{base}](https://huggingface.co/{base})."]
    lines += measured(values) if values is not None else ["", "Nothing was measured when it was trained."]
    loader = trained.task.loader
    lines += ["", "## Use", "", "```python", "from afina import PeftModel  # or: from peft import PeftModel, where it "
              "has the method", f"from transformers import {loader}", "",
              f'model = PeftModel.from_pretrained({loader}.from_pretrained("{base}"), "this repository")', "```", "",
              f"Made with afina {__version__}.", ""]  # fmt: skip
    return "\n".join(lines)


def _measured(title: str, trained: Any, values: dict[str, Any], task: str) -> dict[str, Any]:
    """The scores as the hub's tables take them."""
    after, data = values["after"], trained.recipe.data
    given = data.eval or data.train
    name = given if isinstance(given, str) else "several data sets"
    plain = name.partition(":")[2] if ":" in name else name
    metrics = [{"type": kind, "name": label, "value": after[key]} for key, kind, label in (
        ("accuracy", "accuracy", after["metric"]), ("f1", "f1", f"{after['f1_of']} F1"), ("loss", "loss", "loss"),
    ) if after.get(key) is not None]  # fmt: skip
    return {"name": title, "results": [{
        "task": {"type": task}, "metrics": metrics,
        "dataset": {"type": "held-out", "name": "/".join(plain.split("/")[-2:]) or "held-out rows"},
    }]}  # fmt: skip
