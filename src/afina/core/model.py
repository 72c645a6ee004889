"""The face: a model with adapters, under the reference's names and meanings."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import AfinaWarning, ConfigError, MergeError, NameTakenError
from . import embeddings, targets, tuner
from .architectures import HEAD_NAMES
from .card import write_card
from .checkpoint import LoadResult, layer_config, load_adapter, open_adapter, refuse_other_config, save_adapter
from .config import LayerConfig, PeftConfig, TaskType
from .host import hosts

if TYPE_CHECKING:
    from typing_extensions import Self

_OPEN_OPTIONS = ("revision", "cache_dir", "token", "force_download", "local_files_only")


class PeftModel(nn.Module):
    """A base model and its adapters.

    Args:
        model: any `torch.nn.Module`; it is changed in place (hosts take the place of the adapted layers).
        peft_config: what to adapt and how.
        adapter_name: the first adapter's name.
        autocast_adapter_dtype: keep adapters in float32 on a 16-bit base.
        low_cpu_mem_usage: create the adapter without memory, to be filled by loading.

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
        self.base_model = tuner.Tuner(model)
        self._never_called_checked = False
        self._inject(adapter_name, peft_config, autocast_adapter_dtype, low_cpu_mem_usage)
        tuner.activate(model, (adapter_name,), trainable=() if peft_config.inference_mode else None)
        self._names: tuple[str, ...] = (adapter_name,)

    # -- adapters ---------------------------------------------------------------------------------------------------

    def _inject(self, name: str, config: PeftConfig, autocast: bool = True, low_memory: bool = False) -> None:
        config = layer_config(config)
        self._add_heads(config)
        config.target_modules = targets.settle(self.get_base_model(), config)
        tuner.inject(self.get_base_model(), config, name, low_cpu_mem_usage=low_memory,
                     autocast_adapter_dtype=autocast, container=self.base_model)  # fmt: skip
        if config.base_model_name_or_path is None:
            config.base_model_name_or_path = _origin(self.get_base_model())
        if config.task_type is None:
            base = type(self.get_base_model())
            config.auto_mapping = {"base_model_class": base.__name__, "parent_library": base.__module__}
        self.base_model.peft_config[name] = config

    def _add_heads(self, config: LayerConfig) -> None:
        if not self.head_names:
            return
        named = {n for n, _ in self.get_base_model().named_children()}
        known = config.modules_to_save or []
        config.modules_to_save = [*known, *(n for n in self.head_names if n in named and n not in known)] or None

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Add a fresh adapter; it is not activated. Any method may join any other."""
        self._inject(adapter_name, peft_config, autocast_adapter_dtype, low_cpu_mem_usage)
        tuner.activate(self.get_base_model(), self._names, trainable=self._trainable())

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter, or several that apply in the given order; exactly they become trainable."""
        names = (adapter_name,) if isinstance(adapter_name, str) else tuple(adapter_name)
        tuner.check_known(names, self.peft_config)
        merged = {n for _, h in hosts(self) for n in h.merged}
        if merged:
            warnings.warn(f"unmerging {', '.join(sorted(merged))} before switching", AfinaWarning, stacklevel=2)
            self.unmerge_adapter()
        self._names = names
        tuner.activate(self.get_base_model(), names, trainable=() if inference_mode else None)

    def set_requires_grad(self, adapter_names: str | list[str], requires_grad: bool = True) -> None:
        """Freeze or unfreeze adapters without activating them."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        tuner.check_known(names, self.peft_config)
        for _, host in hosts(self):
            for name in names:
                adapter = host.adapter(name)
                found = [] if adapter is None else list(adapter.trainable().values())
                for parameter in [*found, *([host.biases[name]] if name in host.biases else [])]:
                    parameter.requires_grad_(requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; if it was the only active one, the first of the remaining becomes active."""
        tuner.check_known([adapter_name], self.peft_config)
        tuner.delete(self.base_model, adapter_name)
        del self.base_model.peft_config[adapter_name]
        left = tuple(n for n in self._names if n != adapter_name)
        if not left and self.peft_config:
            left = (next(iter(self.peft_config)),)
            warnings.warn(f"adapter {left[0]!r} is active now", AfinaWarning, stacklevel=2)
        self._names = left
        tuner.activate(self.get_base_model(), left)

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base model's own bits, for the duration of the context; merged adapters stay merged afterwards."""
        tuner.enable(self.get_base_model(), False)
        try:
            yield
        finally:
            tuner.enable(self.get_base_model(), True)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = True) -> None:
        """Merge adapters (the active ones) into the base weights; `unmerge_adapter` gives the original bits back.

        Raises:
            NotMergeable, NumericError: nothing was changed.
        """
        names = tuple(adapter_names or self._names)
        tuner.check_known(names, self.peft_config)
        if adapter_names and names != self._names[: len(names)]:
            warnings.warn("the merged adapters are not the first of the active ones, so the order in which they apply "
                          "changes", AfinaWarning, stacklevel=2)  # fmt: skip
        tuner.merge(self.get_base_model(), names)

    def unmerge_adapter(self) -> None:
        """Give every base weight its original bits back."""
        tuner.unmerge(self.get_base_model())

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = True, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """The base model with adapters (the active ones) merged for good.

        Raises:
            NotMergeable, NumericError: nothing was changed.
        """
        names = tuple(adapter_names or self._names)
        tuner.check_known(names, self.peft_config)
        tuner.fuse(self.get_base_model(), names)
        return self.get_base_model()

    def unload(self) -> nn.Module:
        """The base model with its original bits and without adapters."""
        tuner.unmerge(self.get_base_model())
        tuner.strip(self.get_base_model(), keep_saved=False)
        return self.get_base_model()

    # -- files ------------------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: bool | str = "auto",
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write adapters: "default" into the folder itself, others into subfolders of their names.

        Raises:
            CheckpointError, NumericError: what was on disk before is still there.
        """
        if not safe_serialization:
            raise ConfigError("adapters are only written as safetensors: loading a pickle can run code",
                              where="safe_serialization", got=False)  # fmt: skip
        names = selected_adapters or list(self.peft_config)
        tuner.check_known(names, self.peft_config)
        if not is_main_process:
            return
        folder = Path(save_directory)
        for name in names:
            save_adapter(self, folder if name == "default" else folder / name, name, self.peft_config[name],
                         state_dict=state_dict, save_embedding_layers=save_embedding_layers)  # fmt: skip
        if not (folder / "README.md").exists():
            self.create_or_update_model_card(folder)

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | os.PathLike[str],
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        autocast_adapter_dtype: bool = True,
        ephemeral_gpu_offload: bool = False,
        low_cpu_mem_usage: bool = False,
        key_mapping: dict[str, str] | None = None,
        allow_other_base: bool = False,
        **kwargs: Any,
    ) -> PeftModel:
        """A model with an adapter from a folder or the hub.

        Args:
            is_trainable: let it train on; otherwise it is frozen and the model in eval mode.
            allow_other_base: load even if the weights below are not those that it was trained on.

        Raises:
            CheckpointError: the file is damaged, or does not fit the model or its config.
        """
        if key_mapping:
            raise ConfigError("renaming keys while loading is not supported", where="key_mapping", got=key_mapping)
        hub = {k: v for k, v in kwargs.items() if k in _OPEN_OPTIONS}
        file = open_adapter(str(model_id), kwargs.get("subfolder"), config=config, **hub)
        file.config.inference_mode = not is_trainable
        embeddings.fit(model, file.shapes())
        target = MODEL_CLASSES.get(str(getattr(file.config.task_type, "value", "")), PeftModel) if cls is PeftModel else cls
        out = target(model, file.config, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)
        try:
            load_adapter(out, adapter_name, file, allow_other_base=allow_other_base)
        except ValueError:
            out.unload()
            raise
        if not is_trainable:
            out.eval()
        return out

    def load_adapter(
        self,
        model_id: str | os.PathLike[str],
        adapter_name: str,
        is_trainable: bool = False,
        torch_device: str | None = None,
        autocast_adapter_dtype: bool = True,
        ephemeral_gpu_offload: bool = False,
        low_cpu_mem_usage: bool = False,
        allow_other_base: bool = False,
        **kwargs: Any,
    ) -> LoadResult:
        """Load another adapter, or other weights into one that is already here; it is not activated.

        Raises:
            CheckpointError, ConfigError: the model is as before.
        """
        hub = {k: v for k, v in kwargs.items() if k in _OPEN_OPTIONS}
        file = open_adapter(str(model_id), kwargs.get("subfolder"), **hub)
        fresh = adapter_name not in self.peft_config
        if fresh:
            file.config.inference_mode = not is_trainable
            self._inject(adapter_name, file.config, autocast_adapter_dtype, low_cpu_mem_usage)
        else:
            refuse_other_config(self.peft_config[adapter_name], file)
        trainable = self._trainable()
        try:
            load_adapter(self, adapter_name, file, allow_other_base=allow_other_base)
        except ValueError:
            if fresh:
                tuner.delete(self.base_model, adapter_name)
                del self.base_model.peft_config[adapter_name]
            raise
        if fresh:
            tuner.activate(self.get_base_model(), self._names, trainable=trainable)
        return LoadResult([], [])

    def create_or_update_model_card(self, output_dir: str | os.PathLike[str]) -> None:
        """Write README.md: what this is, its base, and how to load it; text that is already there is kept."""
        config = self.peft_config[self.active_adapter] if self._names else next(iter(self.peft_config.values()))
        write_card(Path(output_dir), config, self.get_nb_trainable_parameters())

    def push_to_hub(self, repo_id: str, *, token: str | None = None, private: bool | None = None, **kwargs: Any) -> Any:
        """Upload what `save_pretrained` writes; needs `huggingface_hub` and a token."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            return api.upload_folder(repo_id=url.repo_id, folder_path=folder,
                                     commit_message=kwargs.get("commit_message", "Upload adapter"))  # fmt: skip

    # -- facts ------------------------------------------------------------------------------------------------------

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
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
        trainable = total = 0
        for parameter in self.parameters():
            count = parameter.numel() or int(getattr(parameter, "ds_numel", 0))
            if type(parameter).__name__ == "Params4bit":
                # Two 4-bit numbers are stored in a byte.
                count *= 2 * getattr(getattr(parameter, "quant_storage", torch.uint8), "itemsize", 1)
            total += count
            trainable += count if parameter.requires_grad else 0
        return trainable, total

    def print_trainable_parameters(self) -> None:
        """Print how much trains."""
        trainable, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}")

    # -- running ----------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's forward with the active adapters."""
        _refuse_rows(kwargs)
        out = self.base_model(*args, **kwargs)
        if self.training and not self._never_called_checked and not torch.compiler.is_compiling():
            self._check_called()
        return out

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's `generate` with the active adapters."""
        _refuse_rows(kwargs)
        return self.get_base_model().generate(*args, **kwargs)  # type: ignore[operator]

    def _check_called(self) -> None:
        """After the first training forward: an adapter on a layer that is never called would learn nothing."""
        self._never_called_checked = True
        idle = [n for n, h in hosts(self.get_base_model()) if h.stack and not h.called and "expert" not in n]
        if idle:
            raise ConfigError(
                f"{len(idle)} adapted layers were not called in forward, so nothing would be learnt there",
                where=", ".join(idle[:3]), fix="leave them out with exclude_modules, or adapt the module that uses them",
            )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model" or "base_model" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.base_model, name)


def _refuse_rows(kwargs: dict[str, Any]) -> None:
    if kwargs.pop("adapter_names", None) is not None:
        raise ConfigError("adapters per row of a batch are not available", where="adapter_names",
                          fix="run one batch per adapter with set_adapter")  # fmt: skip


def _origin(model: nn.Module) -> str | None:
    config = getattr(model, "config", None)
    return getattr(config, "_name_or_path", None) or getattr(model, "name_or_path", None) or None


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


MODEL_CLASSES: Mapping[str, type[PeftModel]] = {
    c.task_type.value: c
    for c in (PeftModelForCausalLM, PeftModelForSeq2SeqLM, PeftModelForSequenceClassification,
              PeftModelForTokenClassification, PeftModelForQuestionAnswering, PeftModelForFeatureExtraction)
    if c.task_type is not None
}  # fmt: skip


def get_peft_model(
    model: nn.Module,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
) -> PeftModel:
    """Adapt a model: freeze it, put an adapter on every layer that the config targets, and return it wrapped.

    Args:
        model: any `torch.nn.Module`; changed in place.
        mixed: accepted for the reference's sake; adapters of several methods always may be mixed.
        revision: the base model's revision, recorded in the config.

    Raises:
        TargetError, ConfigError, NameTakenError: nothing was changed.
    """
    config = copy.copy(peft_config)
    if revision is not None:
        config.revision = revision
    target = MODEL_CLASSES.get(str(getattr(config.task_type, "value", "")), PeftModel)
    return target(model, config, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)


def inject_adapter_in_model(
    peft_config: PeftConfig,
    model: nn.Module,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
    state_dict: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Put an adapter into a model in place, without wrapping it, activate it, and return the model."""
    if state_dict is not None:
        raise ConfigError("targets are chosen by the config, not by a state dict", where="state_dict")
    tuner.inject(model, layer_config(peft_config), adapter_name, low_cpu_mem_usage=low_cpu_mem_usage)
    tuner.activate(model, (adapter_name,), trainable=() if peft_config.inference_mode else None)
    return model


__all__ = ["MODEL_CLASSES", "MergeError", "NameTakenError", "PeftModel", "get_peft_model", "inject_adapter_in_model"]
