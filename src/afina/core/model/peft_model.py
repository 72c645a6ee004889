"""The face: a model with adapters, under the reference's names and meanings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from ...errors import ConfigError
from ..config import LayerConfig, PeftConfig, TaskType
from ..disk import card, embeddings
from ..disk.checkpoint import get_peft_model_state_dict, layer_config
from ..hosts import tuner
from ..hosts.host import hosts
from ..inject import injection as inject
from ..inject import targets
from ..inject.architectures import HEAD_NAMES
from ..inject.partition import Settled
from ..inject.stacked import name_stacks
from ..layers.kbit import require_input_gradients
from ..layers.sharded import class_of
from ..layers.whole_model import count_parameters
from ..prompts.encoder import PromptLearningConfig
from ..validate import check_is, check_name
from .base_tuner import BaseTuner
from .changes import changes
from .replication import replicate
from .verbs import Verbs


def add_heads(config: PeftConfig, model: nn.Module, heads: tuple[str, ...]) -> None:
    """Let those of the `heads` that a model has be trained along with an adapter, whole.

    Args:
        config: of the adapter; its `modules_to_save` is changed.
        model: the base model.
        heads: names of modules that stand directly in it.
    """
    if not heads or not isinstance(config, (LayerConfig, PromptLearningConfig)):
        return
    named = {n for n, _ in model.named_children()}
    known = config.modules_to_save or []
    config.modules_to_save = [*known, *(n for n in heads if n in named and n not in known)] or None


class PeftModel(Verbs):
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
        check_is(model, nn.Module, "model", "of torch")
        if any(True for _ in hosts(model)):
            raise ConfigError("the model already has adapters", where=type(model).__name__,
                              fix="use add_adapter on the PeftModel, or merge_and_unload first")  # fmt: skip
        self.base_model = BaseTuner(model)
        self._inject(adapter_name, peft_config, autocast_adapter_dtype, low_cpu_mem_usage)
        tuner.activate(self.base_model, (adapter_name,), trainable=() if peft_config.inference_mode else None)

    def _inject(self, name: str, config: PeftConfig, autocast: bool = True, low_memory: bool = False) -> None:
        check_is(config, PeftConfig, "peft_config", "e.g. LoraConfig(r=8)")
        self._never_called_checked, self._settled = False, Settled()
        if not low_memory:  # a file says itself which heads it holds
            add_heads(config, self.get_base_model(), self.head_names)
        if isinstance(config, PromptLearningConfig):
            check_name(name)
            # Made first, because that compares sizes and changes nothing of the model.
            encoder = self.base_model.made_prompt(config, autocast)
            inject.inject(self.get_base_model(), config.as_layers(), name, container=self.base_model)
            self.base_model.prompt_encoder[name] = encoder
            return self._record(name, config)
        config = layer_config(config)
        with self._with_experts(config, autocast), self._with_replicated_layers(config):
            name_stacks(self.get_base_model(), config)
            config.target_modules = targets.settle(self.get_base_model(), config)
            inject.inject(self.get_base_model(), config, name, low_cpu_mem_usage=low_memory,
                         autocast_adapter_dtype=autocast, container=self.base_model)  # fmt: skip
        self._record(name, config)

    @contextlib.contextmanager
    def _with_replicated_layers(self, config: LayerConfig) -> Iterator[None]:
        """The model with the layers that a config wants; its own ones again after an error inside the context."""
        wanted: list[Any] | None = getattr(config, "layer_replication", None)
        here = self.base_model.replicated
        if wanted and here is not None and here.layer_map != [list(p) for p in wanted]:
            raise ConfigError("the model's layers are replicated otherwise", where="layer_replication", got=wanted,
                              expected=here.layer_map)  # fmt: skip
        if not wanted or here is not None:
            yield
            return
        if self.peft_config:
            raise ConfigError("layers can be replicated by the first adapter only", where="layer_replication",
                              got=wanted)  # fmt: skip
        self.base_model.replicated = made = replicate(self.get_base_model(), wanted)
        done = False
        try:
            yield
            done = True
        finally:
            if not done:
                made.undo()
                self.base_model.replicated = None

    def _record(self, name: str, config: PeftConfig) -> None:
        if config.base_model_name_or_path is None:
            config.base_model_name_or_path = card.origin(self.get_base_model())
        if config.task_type is None:
            base = class_of(self.get_base_model())
            config.auto_mapping = {"base_model_class": base.__name__, "parent_library": base.__module__}
        self.base_model.peft_config[name] = config

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
        with tuner.training_kept(self):
            self._inject(adapter_name, peft_config, autocast_adapter_dtype, low_cpu_mem_usage)
            tuner.activate(self.base_model, self.base_model.active)

    @classmethod
    def for_config(cls, config: PeftConfig) -> type[PeftModel]:
        """The class of a config's task, unless this is a particular one.

        Args:
            config: of any adapter of the model.
        """
        return MODEL_CLASSES.get(str(getattr(config.task_type, "value", "")), PeftModel) if cls is PeftModel else cls

    @property
    def peft_config(self) -> dict[str, PeftConfig]:  # type: ignore[override]
        """Adapter name -> its config."""
        return self.base_model.peft_config

    @property
    def active_peft_config(self) -> PeftConfig:
        """The (first) active adapter's config."""
        if not self.active_adapter:
            raise ConfigError("no adapter is active", where="active_peft_config", fix="call set_adapter first")
        return self.peft_config[self.active_adapter]

    @property
    def peft_type(self) -> Any:
        """The active adapter's method."""
        return self.active_peft_config.peft_type

    def get_base_model(self) -> nn.Module:
        """The user's model, with hosts in it."""
        return self.base_model.model

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all) numbers of parameters; of quantised weights, the number that they stand for."""
        return count_parameters(self)

    def get_nb_savable_parameters(self, adapter_name: str = "default") -> tuple[int, int]:
        """(in the file of the adapter `adapter_name`, all) numbers of parameters."""
        state = get_peft_model_state_dict(self, adapter_name=adapter_name, save_embedding_layers=False)
        return sum(t.numel() for t in state.values()), count_parameters(self)[1]

    def prepare_model_for_gradient_checkpointing(self, model: nn.Module) -> None:
        """Let gradients flow into the output of the embeddings of `model`, unless it is quantised, whose preparation
        does it."""
        if not getattr(model, "is_quantized", False):
            require_input_gradients(model)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Module:
        """The base model's, whose input embedding it returns.

        Args:
            new_num_tokens: the size of the vocabulary; as it is if None.
            *args: of the base model.
            **kwargs: of the base model.

        Raises:
            ConfigError: an adapter stands on an embedding that would change.
        """
        base: Any = self.get_base_model()
        embeddings.refuse_adapted(base, new_num_tokens)
        resized: nn.Module = base.resize_token_embeddings(new_num_tokens, *args, **kwargs)
        return resized

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
