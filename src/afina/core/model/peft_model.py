"""The face: a model with adapters, under the reference's names and meanings."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from ...errors import AfinaWarning, ConfigError
from ..combine.unload import delete, fuse, strip
from ..config import LayerConfig, PeftConfig, TaskType
from ..disk import card
from ..disk.checkpoint import layer_config
from ..hosts import tuner
from ..hosts.calls import switched_off
from ..hosts.host import hosts
from ..inject import injection as inject
from ..inject import targets
from ..inject.architectures import HEAD_NAMES
from ..layers.whole_model import count_parameters
from ..prompts.encoder import PromptLearningConfig
from .base_tuner import BaseTuner
from .changes import changes
from .running import Running


class PeftModel(Running):
    """A base model and its adapters, of any methods.

    What is not found here is looked up in the base model.

    Args:
        model: any `torch.nn.Module`; it is changed in place (hosts take the place of the adapted layers).
        peft_config: what to adapt and how.
        adapter_name: the first adapter's name.
        autocast_adapter_dtype: keep adapters in float32 on a 16-bit base.
        low_cpu_mem_usage: create the adapter without memory, to be filled by loading.
        **kwargs: accepted for the reference's sake, without effect.

    Raises:
        TargetError, ConfigError, NameTakenError: nothing was changed.
    """

    task_type: TaskType | None = None
    head_names: tuple[str, ...] = ()
    """Heads that are trained along, because a fresh one knows nothing."""

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if any(True for _ in hosts(model)):
            raise ConfigError("the model already has adapters", where=type(model).__name__,
                              fix="use add_adapter on the PeftModel, or merge_and_unload first")  # fmt: skip
        self.base_model = BaseTuner(model)
        self._never_called_checked = False
        self._inject(adapter_name, peft_config, autocast_adapter_dtype, low_cpu_mem_usage)
        tuner.activate(self.base_model, (adapter_name,), trainable=() if peft_config.inference_mode else None)
        self._names: tuple[str, ...] = (adapter_name,)

    def _inject(self, name: str, config: PeftConfig, autocast: bool = True, low_memory: bool = False) -> None:
        if not low_memory:  # a file says itself which heads it holds
            self._add_heads(config)
        if isinstance(config, PromptLearningConfig):
            tuner.check_name(name)
            # Made first, because that compares sizes and changes nothing of the model.
            encoder = self.base_model.made_prompt(config, autocast)
            inject.inject(self.get_base_model(), config.as_layers(), name, container=self.base_model)
            self.base_model.prompt_encoder[name] = encoder
            return self._record(name, config)
        config = layer_config(config)
        with self._with_experts(config, autocast):
            config.target_modules = targets.settle(self.get_base_model(), config)
            inject.inject(self.get_base_model(), config, name, low_cpu_mem_usage=low_memory,
                         autocast_adapter_dtype=autocast, container=self.base_model)  # fmt: skip
        self._record(name, config)

    def _record(self, name: str, config: PeftConfig) -> None:
        if config.base_model_name_or_path is None:
            config.base_model_name_or_path = card.origin(self.get_base_model())
        if config.task_type is None:
            base = type(self.get_base_model())
            config.auto_mapping = {"base_model_class": base.__name__, "parent_library": base.__module__}
        self.base_model.peft_config[name] = config

    def _add_heads(self, config: PeftConfig) -> None:
        if not self.head_names or not isinstance(config, (LayerConfig, PromptLearningConfig)):
            return
        named = {n for n, _ in self.get_base_model().named_children()}
        known = config.modules_to_save or []
        config.modules_to_save = [*known, *(n for n in self.head_names if n in named and n not in known)] or None

    @changes
    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Add a fresh adapter; it is not activated. Any method may join any other.

        Args:
            adapter_name: a new name.
            peft_config: what to adapt and how.
            low_cpu_mem_usage: create the adapter without memory, to be filled by loading.
            autocast_adapter_dtype: keep the adapter in float32 on a 16-bit base.

        Raises:
            TargetError, ConfigError, NameTakenError: nothing was changed.
        """
        self._inject(adapter_name, peft_config, autocast_adapter_dtype, low_cpu_mem_usage)
        tuner.activate(self.base_model, self._names, trainable=self._trainable())

    @changes
    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter, or several that apply in the given order; exactly they become trainable.

        Args:
            adapter_name: one name, or several in order.
            inference_mode: let none of them train.

        Raises:
            NameTakenError: no such adapter.
        """
        names = (adapter_name,) if isinstance(adapter_name, str) else tuple(adapter_name)
        tuner.check_known(names, self.peft_config)
        merged = {n for _, h in hosts(self) for n in h.merged}
        if merged:
            warnings.warn(f"unmerging {', '.join(sorted(merged))} before switching", AfinaWarning, stacklevel=2)
            self.unmerge_adapter()
        self._names = names
        tuner.activate(self.base_model, names, trainable=() if inference_mode else None)

    @changes
    def set_requires_grad(self, adapter_names: str | list[str], requires_grad: bool = True) -> None:
        """Freeze (`requires_grad` False) or unfreeze the adapters `adapter_names` without activating them.

        Raises:
            NameTakenError: no such adapter.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        tuner.check_known(names, self.peft_config)
        tuner.set_requires_grad(self, names, requires_grad)

    @changes
    def delete_adapter(self, adapter_name: str) -> None:
        """Remove the adapter `adapter_name`; if it alone was active, the first of the remaining becomes active.

        Raises:
            NameTakenError: no such adapter, or another one routes to it.
        """
        tuner.check_known([adapter_name], self.peft_config)
        delete(self.base_model, adapter_name)
        del self.base_model.peft_config[adapter_name]
        left = tuple(n for n in self._names if n != adapter_name)
        if not left and self.peft_config:
            left = (next(iter(self.peft_config)),)
            warnings.warn(f"adapter {left[0]!r} is active now", AfinaWarning, stacklevel=2)
        self._names = left
        tuner.activate(self.base_model, left)

    @classmethod
    def for_config(cls, config: PeftConfig) -> type[PeftModel]:
        """The class of a config's task, unless this is a particular one.

        Args:
            config: of any adapter of the model.
        """
        return MODEL_CLASSES.get(str(getattr(config.task_type, "value", "")), PeftModel) if cls is PeftModel else cls

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base model's own bits for what this thread (or asyncio task) calls inside the context; other threads, and
        what is merged, are not touched."""
        with switched_off(self.base_model.scope):
            yield

    @changes
    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = True, requantise: bool = False
    ) -> None:
        """Merge adapters (the active ones) into the base weights; `unmerge_adapter` gives the original bits back.

        Args:
            adapter_names: which; the active ones if None.
            safe_merge: accepted for the reference's sake; what is not finite is never merged.
            requantise: merge into quantised weights too, and warn of how much of the update that lost.

        Raises:
            NotMergeable, NumericError, MergeError: nothing was changed.
        """
        names = tuple(adapter_names or self._names)
        tuner.check_known(names, self.peft_config)
        if adapter_names and names != self._names[: len(names)]:
            warnings.warn("the merged adapters are not the first of the active ones, so the order in which they apply "
                          "changes", AfinaWarning, stacklevel=2)  # fmt: skip
        tuner.merge(self.base_model, names, requantise)

    @changes
    def unmerge_adapter(self) -> None:
        """Give every base weight its original bits back."""
        tuner.unmerge(self.base_model)

    @changes
    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = True,
        adapter_names: list[str] | None = None,
        requantise: bool = False,
    ) -> nn.Module:
        """The base model with adapters merged for good.

        Args:
            progressbar: accepted for the reference's sake, without effect.
            safe_merge: as for `merge_adapter`, like the two below.
            adapter_names: which; the active ones if None.
            requantise: merge into quantised weights too.

        Raises:
            NotMergeable, NumericError, MergeError: nothing was changed.
        """
        names = tuple(adapter_names or self._names)
        tuner.check_known(names, self.peft_config)
        fuse(self.base_model, names, requantise)
        return self.get_base_model()

    @changes
    def unload(self) -> nn.Module:
        """The base model with its original bits and without adapters."""
        tuner.unmerge(self.base_model)
        strip(self.base_model, keep_saved=False)
        if self.base_model.vocabulary is not None:
            self.base_model.vocabulary.restore(self.get_base_model())
            self.base_model.vocabulary = None
        return self.get_base_model()

    @property
    def peft_config(self) -> dict[str, PeftConfig]:  # type: ignore[override]
        """Adapter name -> its config."""
        return self.base_model.peft_config

    @property
    def active_adapters(self) -> list[str]:
        """The active adapters, in the order in which they apply."""
        return list(self._names)

    @property
    def active_adapter(self) -> str:
        """The (first) active adapter."""
        return self._names[0] if self._names else ""

    @active_adapter.setter
    def active_adapter(self, name: str) -> None:
        self.set_adapter(name)

    @property
    def active_peft_config(self) -> PeftConfig:
        """The (first) active adapter's config."""
        return self.peft_config[self.active_adapter]

    @property
    def peft_type(self) -> Any:
        """The active adapter's method."""
        return self.active_peft_config.peft_type

    def _trainable(self) -> tuple[str, ...]:
        return tuple(n for n in self._names if not self.peft_config[n].inference_mode)

    def get_base_model(self) -> nn.Module:
        """The user's model, with hosts in it."""
        return self.base_model.model

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all) numbers of parameters; of quantised weights, the number that they stand for."""
        return count_parameters(self)

    def print_trainable_parameters(self) -> None:
        """Print how much trains."""
        trainable, total = self.get_nb_trainable_parameters()
        print(
            f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}"
        )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model" or "base_model" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.base_model, name)


class PeftModelForCausalLM(PeftModel):
    """A causal language model with adapters."""

    task_type = TaskType.CAUSAL_LM


class PeftModelForSeq2SeqLM(PeftModel):
    """An encoder-decoder language model with adapters."""

    task_type = TaskType.SEQ_2_SEQ_LM


class PeftModelForSequenceClassification(PeftModel):
    """A sequence classifier with adapters; its head trains along."""

    task_type = TaskType.SEQ_CLS
    head_names = HEAD_NAMES


class PeftModelForTokenClassification(PeftModel):
    """A token classifier with adapters; its head trains along."""

    task_type = TaskType.TOKEN_CLS
    head_names = HEAD_NAMES


class PeftModelForQuestionAnswering(PeftModel):
    """An extractive question-answering model with adapters; its head trains along."""

    task_type = TaskType.QUESTION_ANS
    head_names = HEAD_NAMES


class PeftModelForFeatureExtraction(PeftModel):
    """An encoder with adapters."""

    task_type = TaskType.FEATURE_EXTRACTION


MODEL_CLASSES: Mapping[str, type[PeftModel]] = MappingProxyType(
    {kind.task_type.value: kind for kind in PeftModel.__subclasses__() if kind.task_type is not None}
)
"""Task type -> the class of models for it."""
