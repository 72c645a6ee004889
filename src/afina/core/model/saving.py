"""Saving and loading: the part of `PeftModel` that touches disks and the hub."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from ...errors import CheckpointError, ConfigError, NameTakenError
from ..combine.unload import delete
from ..config import LayerConfig, PeftConfig
from ..disk import embeddings
from ..disk.adapter_file import refuse_other_config
from ..disk.card import complete_card
from ..disk.checkpoint import get_peft_model_state_dict, load_adapter, open_adapter, save_adapter
from ..disk.load_plan import LoadResult
from ..disk.names import own_key
from ..disk.shares import needs_all
from ..files.allocation import AllocationLimit
from ..files.budget import reading
from ..files.unwritable import usable_folder
from ..hosts import tuner
from ..hosts.routing import Place
from ..inject.partition import Settled
from ..layers.sharded import all_here, is_first
from ..validate import as_names
from .base_tuner import BaseTuner
from .changes import changes, remember, undone_on_error

if TYPE_CHECKING:
    from .peft_model import PeftModel

_OPEN_OPTIONS = ("revision", "cache_dir", "token", "force_download", "local_files_only", "allow_pickle")


def _find_experts(config: PeftConfig, source: str, options: Mapping[str, Any]) -> None:
    """Where the adapters lie that the config of a file needs: where the caller says, or in subfolders beside it.

    What the file says is not followed: nothing is opened because a file names it.
    """
    given = options.get("adapters") or {}
    hub = {k: v for k, v in options.items() if k in _OPEN_OPTIONS}
    inside = options.get("subfolder")

    def place(name: str) -> Place:
        if name in given:
            return Place(str(given[name]))
        return Place(source, name if inside is None else f"{inside}/{name}", hub)

    if isinstance(config, LayerConfig):
        config.find_experts(place)


class Files(nn.Module):
    """`save_pretrained`, `from_pretrained`, `load_adapter`, the model card and the hub."""

    if TYPE_CHECKING:
        base_model: BaseTuner
        peft_config: dict[str, PeftConfig]
        active_adapter: str
        _settled: Settled

        def _inject(self, name: str, config: PeftConfig, autocast: bool = True, low_memory: bool = False) -> None: ...
        @classmethod
        def for_config(cls, config: PeftConfig) -> type[PeftModel]: ...
        def get_base_model(self) -> nn.Module: ...
        def get_nb_trainable_parameters(self) -> tuple[int, int]: ...

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

        Args:
            save_directory: the folder; created where it is missing.
            safe_serialization: False, the reference's pickle, is refused.
            selected_adapters: names; all if None.
            save_embedding_layers: also store the input and output embeddings; "auto": if the vocabulary was resized.
            is_main_process: False writes nothing. Where adapters are sharded every process has to call this, and only
                the first one writes.
            state_dict: gathered state of the whole model (FSDP, DeepSpeed) to take the values from.
            **kwargs: accepted for the reference's sake, without effect.

        Raises:
            CheckpointError, NumericError: what was on disk before is still there.
            ConfigError: a pickle is asked for.
        """
        if not safe_serialization:
            raise ConfigError("adapters are only written as safetensors: loading a pickle can run code",
                              where="safe_serialization", got=False)  # fmt: skip
        names = list(self.peft_config) if selected_adapters is None else as_names(selected_adapters)
        tuner.check_known(names, self.peft_config)
        folder = usable_folder(save_directory)
        if not names and selected_adapters is None:
            raise ConfigError("there is no adapter to save", where=folder)
        spread = state_dict is None and any(needs_all(self, n, save_embedding_layers) for n in names)
        if spread:
            all_here("save_pretrained")
            self._settled.settle(self, self.get_base_model())
        write = is_main_process and (not spread or is_first())
        if not (write or spread) or not names:
            return
        for name in names:
            save_adapter(self, folder if name == "default" else folder / name, name, self.peft_config[name],
                         state_dict=state_dict, save_embedding_layers=save_embedding_layers, write=write)  # fmt: skip
        if write and (folder / "README.md").exists():
            complete_card(folder / "README.md", self.peft_config[names[0]])
        elif write:
            cast(Any, self).create_or_update_model_card(folder)

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
            model: the base; any `torch.nn.Module`, changed in place.
            model_id: folder or hub id.
            adapter_name: the adapter's name.
            is_trainable: let it train on; otherwise it is frozen and the model in eval mode.
            config: its configuration, in place of the file's.
            autocast_adapter_dtype: keep the adapter in float32 on a 16-bit base.
            ephemeral_gpu_offload: accepted for the reference's sake, without effect.
            low_cpu_mem_usage: accepted for the reference's sake; no memory is taken before the file has been checked.
            key_mapping: patterns of the file's keys (without `base_model.model.`) -> what stands in their place here.
            allow_other_base: load even if the weights below are not those that it was trained on.
            **kwargs: `ignore_mismatched_sizes=True` leaves out tensors of another shape, with a warning: those places
                start afresh; `subfolder`; of the hub: `revision`, `cache_dir`, `token`, `force_download`,
                `local_files_only`; `allow_pickle=True` reads AdapterHub's pickles with torch's `weights_only`;
                `adapters`: name -> folder or hub id of those that the adapter routes among (X-LoRA).

        Raises:
            CheckpointError: the file is damaged, or does not fit the model or its config.
            ConfigError: the config is damaged, or `key_mapping` is given.
        """
        hub = {k: v for k, v in kwargs.items() if k in _OPEN_OPTIONS}
        file = open_adapter(str(model_id), kwargs.get("subfolder"), config=config, **hub)
        file.key_mapping, file.any_shape = key_mapping or {}, bool(kwargs.get("ignore_mismatched_sizes"))
        if config is None:
            _find_experts(file.config, str(model_id), kwargs)
        elif file.config is config:
            file.copy_heads(model, cls.for_config(config).head_names)
        file.config.inference_mode = not is_trainable
        vocabulary = embeddings.Vocabulary(model)
        with reading(file.path, file.config_path), undone_on_error(remember(model)):
            with AllocationLimit(model, file.header.shapes):
                vocabulary.fit(model, file.shapes())
                # Without memory, whatever `low_cpu_mem_usage` says, because the header was not compared yet.
                low = not file.any_shape
                out = cls.for_config(file.config)(model, file.config, adapter_name, autocast_adapter_dtype, low)
            load_adapter(out, adapter_name, file, allow_other_base=allow_other_base, vocabulary=True)
        out.base_model.vocabulary = vocabulary if vocabulary.differs(model) else None
        return out if is_trainable else out.eval()

    @changes
    def load_adapter(
        self,
        model_id: str | os.PathLike[str],
        adapter_name: str,
        is_trainable: bool = False,
        torch_device: str | None = None,
        autocast_adapter_dtype: bool = True,
        ephemeral_gpu_offload: bool = False,
        low_cpu_mem_usage: bool = False,
        key_mapping: dict[str, str] | None = None,
        allow_other_base: bool = False,
        **kwargs: Any,
    ) -> LoadResult:
        """Load another adapter, or other weights into one that is already here; it is not activated.

        Args:
            model_id: folder or hub id.
            adapter_name: a new name, or that of an adapter of the same configuration.
            is_trainable: its parameters require gradients from now on, also while it is not active.
            torch_device: accepted for the reference's sake, without effect.
            autocast_adapter_dtype: keep the adapter in float32 on a 16-bit base.
            ephemeral_gpu_offload: accepted for the reference's sake, without effect.
            low_cpu_mem_usage: accepted for the reference's sake; no memory is taken before the file has been checked.
            key_mapping: as for `from_pretrained`.
            allow_other_base: load even if the weights below are not those that it was trained on.
            **kwargs: as for `from_pretrained`.

        Returns:
            Two empty lists: nothing was missing or unexpected.

        Raises:
            CheckpointError, ConfigError: the model is as before.
        """
        hub = {k: v for k, v in kwargs.items() if k in _OPEN_OPTIONS}
        file = open_adapter(str(model_id), kwargs.get("subfolder"), **hub)
        file.key_mapping, file.any_shape = key_mapping or {}, bool(kwargs.get("ignore_mismatched_sizes"))
        _find_experts(file.config, str(model_id), kwargs)
        self._settled.settle(self, self.get_base_model())
        before = set(self.peft_config)
        fresh = adapter_name not in before
        if not fresh:
            refuse_other_config(self.peft_config[adapter_name], file)
        undone = undone_on_error(lambda: self._delete_all_but(before))
        with reading(file.path, file.config_path), tuner.training_kept(self), undone:
            if fresh:
                file.config.inference_mode = not is_trainable
                with AllocationLimit(self.get_base_model(), file.header.shapes):
                    self._inject(adapter_name, file.config, autocast_adapter_dtype, low_memory=not file.any_shape)
            load_adapter(self, adapter_name, file, allow_other_base=allow_other_base)
            if fresh:
                tuner.activate(self.base_model, self.base_model.active)
        if fresh and is_trainable:  # an optimizer may be made before it is activated
            tuner.set_requires_grad(self.base_model, [adapter_name], True)
        return LoadResult([], [])

    def _delete_all_but(self, names: set[str]) -> None:
        # The last one first: it may route to those that were loaded before it.
        for name in [n for n in reversed(self.peft_config) if n not in names]:
            delete(self.base_model, name)
            del self.base_model.peft_config[name]

    @contextlib.contextmanager
    def _with_experts(self, config: LayerConfig, autocast: bool) -> Iterator[None]:
        """Load the adapters that a config needs beside it; an error inside the context takes them away again."""
        experts = config.experts()
        if not experts:
            yield
            return
        before, trained = set(self.peft_config), [p for p in self.parameters() if p.requires_grad]

        def undo() -> None:
            self._delete_all_but(before)
            for parameter in trained:
                parameter.requires_grad_(True)

        with undone_on_error(undo):
            for name, place in experts.items():
                self._load_expert(name, place, autocast)
            yield

    def _load_expert(self, name: str, place: Place, autocast: bool) -> None:
        here = name in self.peft_config
        if here and not place.source:
            return
        try:
            file = open_adapter(place.source, place.subfolder, **place.hub)
            if here:
                refuse_other_config(self.peft_config[name], file)
                return self._refuse_other_weights(name, file.tensors(), file.path)
            file.config.inference_mode = True
            with reading(file.path, file.config_path):
                with AllocationLimit(self.get_base_model(), file.header.shapes):
                    self._inject(name, file.config, autocast, low_memory=True)
                load_adapter(self, name, file)
        except CheckpointError as error:
            error.fix = "say where the adapters lie: adapters={name: folder or hub id, ...}"
            raise

    def _refuse_other_weights(self, name: str, there: Mapping[str, Tensor], path: Path) -> None:
        own = get_peft_model_state_dict(self, adapter_name=name, save_embedding_layers=False)
        here = {own_key(k): t for k, t in own.items()}
        if here.keys() != there.keys() or any(not here[k].cpu().equal(t.to(here[k].dtype)) for k, t in there.items()):
            raise NameTakenError("the model has another adapter of this name", where=name, got=path)

    def push_to_hub(self, repo_id: str, *, token: str | None = None, private: bool | None = None, **kwargs: Any) -> Any:
        """Upload what `save_pretrained` writes as `repo_id` (owner/name; a new one is `private` or not), with the hub's
        `token`; `kwargs` may have a `commit_message`. Needs `huggingface_hub`."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            return api.upload_folder(repo_id=url.repo_id, folder_path=folder,
                                     commit_message=kwargs.get("commit_message", "Upload adapter"))  # fmt: skip
