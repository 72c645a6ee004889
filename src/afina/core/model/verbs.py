"""What is done with the adapters of a `PeftModel` that are there, and read off them: its tuner knows and does it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..disk.card import write_card
from ..hosts import tuner
from ..hosts.calls import switched_off
from ..prompts.encoder import PromptEncoder
from .running import Running


class Verbs(Running):
    """Activating, switching off, merging, taking away; and telling what is there."""

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter, or several that apply in the given order; exactly they become trainable.

        Args:
            adapter_name: one name, or several in order.
            inference_mode: let none of them train.

        Raises:
            NameTakenError: no such adapter.
        """
        self.base_model.set_adapter(adapter_name, inference_mode)

    def set_requires_grad(self, adapter_names: str | list[str], requires_grad: bool = True) -> None:
        """Freeze (`requires_grad` False) or unfreeze the adapters `adapter_names` without activating them.

        Raises:
            NameTakenError: no such adapter.
        """
        self.base_model.set_requires_grad(adapter_names, requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove the adapter `adapter_name`; if it alone was active, the first of the remaining becomes active.

        Raises:
            NameTakenError: no such adapter, or another one routes to it.
        """
        self.base_model.delete_adapter(adapter_name)

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base model's own bits for what this thread (or asyncio task) calls inside the context; other threads, and
        what is merged, are not touched."""
        with switched_off(self.base_model.scope):
            yield

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
        self.base_model.merge_adapter(adapter_names, safe_merge, requantise)

    def unmerge_adapter(self) -> None:
        """Give every base weight its original bits back."""
        self.base_model.unmerge_adapter()

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
        return self.base_model.merge_and_unload(progressbar, safe_merge, adapter_names, requantise)

    def unload(self) -> nn.Module:
        """The base model with its original bits and without adapters."""
        return self.base_model.unload()

    @property
    def active_adapters(self) -> list[str]:
        """The active adapters, in the order in which they apply."""
        return list(self.base_model.active)

    @property
    def active_adapter(self) -> str:
        """The (first) active adapter."""
        return next(iter(self.base_model.active), "")

    @active_adapter.setter
    def active_adapter(self, name: str) -> None:
        self.base_model.set_adapter(name)

    @property
    def base_model_torch_dtype(self) -> torch.dtype | None:
        """The base model's dtype, if it has one."""
        return getattr(self.base_model, "dtype", None)

    @property
    def has_active_enabled_adapter(self) -> bool:
        """Whether an adapter is active and not switched off, here and now."""
        return bool(self.base_model.active) and self.is_enabled

    @property
    def modules_to_save(self) -> set[str] | None:
        """The modules that adapters train as whole copies, by the names in their configs; None if there is none."""
        found = {n for c in self.base_model.peft_config.values() for n in getattr(c, "modules_to_save", None) or ()}
        return found or None

    def get_prompt(self, batch_size: int, task_ids: Tensor | None = None, max_cache_len: int | None = None) -> Any:
        """The virtual tokens of the first active adapter, as the model is given them.

        Args:
            batch_size: how many rows.
            task_ids: (batch_size,), for methods that know tasks.
            max_cache_len: accepted for the reference's sake, without effect.

        Returns:
            Embeddings (batch_size, tokens, dim); a cache of transformers for methods that prefix keys and values.

        Raises:
            ConfigError: the active adapter has no virtual tokens.
        """
        name = next((n for n in self.base_model.active if n in self.base_model.prompt_encoder), "")
        encoder = self._encoder(name or self.active_adapter)
        inputs = {"task_ids": task_ids}
        if encoder.goes_into == "cache":
            return self.base_model.placements([name])[name].cache(batch_size, inputs)
        return encoder(batch_size, **{k: v for k, v in inputs.items() if k in encoder.inputs})

    def get_prompt_embedding_to_save(self, adapter_name: str) -> Tensor:
        """The table of virtual tokens in the file of the adapter `adapter_name`, (tokens, width), on the processor.

        Raises:
            NameTakenError: no such adapter.
            ConfigError: it has no virtual tokens.
        """
        tuner.check_known([adapter_name], self.base_model.peft_config)
        return self._encoder(adapter_name).disk_state()["prompt_embeddings"].detach().cpu()

    def _encoder(self, name: str) -> PromptEncoder:
        found = self.base_model.prompt_encoder._modules.get(name)
        if not isinstance(found, PromptEncoder):
            raise ConfigError("the adapter has no virtual tokens", where=name or "no adapter is active",
                              fix="activate one that has with set_adapter")  # fmt: skip
        return found

    def create_or_update_model_card(self, output_dir: str | os.PathLike[str]) -> None:
        """Write README.md into `output_dir`: what this is, its base, how to load it; text that is there is kept."""
        config = (
            self.peft_config[self.active_adapter] if self.base_model.active else next(iter(self.peft_config.values()))
        )
        write_card(Path(output_dir), config, self.get_nb_trainable_parameters())
