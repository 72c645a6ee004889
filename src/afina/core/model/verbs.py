"""What is done with the adapters of a `PeftModel` that are there: its tuner does it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from ..hosts.calls import switched_off
from .running import Running


class Verbs(Running):
    """Activating, switching off, merging, taking away."""

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
