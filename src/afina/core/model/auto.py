"""Base model and adapter from one folder or hub id."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from ...errors import ConfigError
from ..config import PeftConfig
from ..disk.checkpoint import open_adapter
from ..disk.fingerprint import digests, stand_on
from ..files.package_folder import model_folder
from .peft_model import MODEL_CLASSES, PeftModel


def on_adapter(base: Any, adapter: str) -> Any:
    """A base with the adapter in a folder merged in, which knows that.

    Raises:
        CheckpointError: the adapter is damaged or for another base.
        NotMergeable: its method has no merged form.
    """
    before = digests(base)
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    stand_on(merged, adapter, before)
    return merged


class AutoPeftModel:
    """Loads the base that an adapter's config names, then the adapter; only `from_pretrained` makes one.

    The base's class follows from the task, or from `auto_mapping`, where it must be a class of transformers.

    Raises:
        OSError: an object of this class is asked for.
    """

    task: ClassVar[str | None] = None
    loader: ClassVar[str] = "AutoModel"

    def __init__(self) -> None:
        raise OSError(f"use {type(self).__name__}.from_pretrained(...)")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        revision: str | None = None,
        import_allowlist: list[str] | None = None,
        **kwargs: Any,
    ) -> PeftModel:
        """The base with its adapter.

        Args:
            pretrained_model_name_or_path: the adapter's folder or hub id.
            adapter_name: the adapter's name.
            is_trainable: let it train on.
            config: its configuration, in place of the file's.
            revision: of the adapter on the hub.
            import_allowlist: packages beside transformers of which `auto_mapping` may name the base's class.
            **kwargs: `subfolder` of the adapter; all else goes to the base's `from_pretrained`.

        Raises:
            ConfigError: the adapter is for another task, or its base is not named, not of transformers, or in a package
                that is not here.
            CheckpointError: as `PeftModel.from_pretrained`.
        """
        source = str(pretrained_model_name_or_path)
        found = config or PeftConfig.from_pretrained(source, revision=revision, subfolder=kwargs.get("subfolder"))
        task = getattr(found.task_type, "value", None)
        if cls.task is not None and task not in (None, cls.task):
            raise ConfigError("the adapter is for another task", where=source, got=task, expected=cls.task)
        if not found.base_model_name_or_path:
            raise ConfigError("the adapter does not say which base it belongs to", where=f"{source}",
                              fix="load the base yourself and use PeftModel.from_pretrained")  # fmt: skip
        loader = cls._loader(found, task, import_allowlist or [])
        location = model_folder(found.base_model_name_or_path)
        base = loader.from_pretrained(location, **_base_options(kwargs), revision=found.revision)
        tokens = Path(source) / "tokenizer_config.json"
        if tokens.is_file():
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(source)
            if len(tokenizer) > base.get_input_embeddings().weight.shape[0]:
                base.resize_token_embeddings(len(tokenizer))
        below = open_adapter(source, kwargs.get("subfolder"), config=config, revision=revision).notes.get("base", {})
        if Path(adapter := str(below.get("adapter_below", ""))).is_dir() and adapter:
            base = on_adapter(base, adapter)
        target = MODEL_CLASSES.get(str(cls.task or task), PeftModel)
        return target.from_pretrained(base, source, adapter_name, is_trainable, config, revision=revision,
                                      subfolder=kwargs.get("subfolder"))  # fmt: skip

    @classmethod
    def _loader(cls, config: PeftConfig, task: str | None, allowed: list[str]) -> Any:
        """The class that loads the base."""
        import transformers

        if cls.task is not None or cls is not AutoPeftModel:
            return getattr(transformers, cls.loader)
        by_task = {c.task: c.loader for c in AutoPeftModel.__subclasses__()}
        if task in by_task:
            return getattr(transformers, by_task[task])
        mapping = config.auto_mapping or {}
        library = str(mapping.get("parent_library", ""))
        name = str(mapping.get("base_model_class", ""))
        found: Any = None
        if library.partition(".")[0] == "transformers" and name.isidentifier():
            found = getattr(transformers, name, None)
        elif any(library == a or library.startswith(f"{a}.") for a in allowed):
            found = _from(library, name)
        if not isinstance(found, type) or not issubclass(found, nn.Module) or not hasattr(found, "from_pretrained"):
            # A file must not decide what is imported.
            raise ConfigError("the base's class is not one of transformers", where="auto_mapping",
                              got=f"{library}.{name}", fix=f"allow import_allowlist=[{library!r}] if you trust it, or "
                              "load the base yourself and use PeftModel.from_pretrained")  # fmt: skip
        return found


def _from(library: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(library), name, None)
    except ImportError as error:
        raise ConfigError(f"the base's package cannot be imported: {error}", where="auto_mapping",
                          got=library) from None  # fmt: skip


def _base_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in kwargs.items() if k != "subfolder"}


class AutoPeftModelForCausalLM(AutoPeftModel):
    """`AutoPeftModel` for causal language models."""

    task, loader = "CAUSAL_LM", "AutoModelForCausalLM"


class AutoPeftModelForSeq2SeqLM(AutoPeftModel):
    """`AutoPeftModel` for encoder-decoder language models."""

    task, loader = "SEQ_2_SEQ_LM", "AutoModelForSeq2SeqLM"


class AutoPeftModelForSequenceClassification(AutoPeftModel):
    """`AutoPeftModel` for sequence classifiers."""

    task, loader = "SEQ_CLS", "AutoModelForSequenceClassification"


class AutoPeftModelForTokenClassification(AutoPeftModel):
    """`AutoPeftModel` for token classifiers."""

    task, loader = "TOKEN_CLS", "AutoModelForTokenClassification"


class AutoPeftModelForQuestionAnswering(AutoPeftModel):
    """`AutoPeftModel` for extractive question answering."""

    task, loader = "QUESTION_ANS", "AutoModelForQuestionAnswering"


class AutoPeftModelForFeatureExtraction(AutoPeftModel):
    """`AutoPeftModel` for encoders."""

    task, loader = "FEATURE_EXTRACTION", "AutoModel"
