"""What the reference calls `model.base_model`: the tuner, with all that can be asked of it."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from ...errors import AfinaWarning
from ..combine.low_rank_form import Retained
from ..combine.offer import Combination
from ..combine.unload import delete, fuse, strip
from ..combine.weighted import add_weighted_adapter
from ..hosts import tuner
from ..hosts.host import Host, hosts
from ..hosts.host_kinds import ModulesToSaveWrapper
from ..hosts.routing import routers
from ..validate import as_names
from .changes import changes
from .replication import Replicated
from .status import TunerLayerStatus, TunerModelStatus, get_layer_status, get_model_status


class BaseTuner(tuner.Tuner):
    """Holds the user's model as `model`, every adapter's config in `peft_config`, and which adapters are active."""

    replicated: Replicated | None = None
    """The layers that the model had before `layer_replication`."""

    @property
    def active_adapters(self) -> list[str]:
        """The active adapters, in the order in which they apply."""
        return list(self.active)

    @property
    def active_adapter(self) -> str | list[str]:
        """The active adapter; a list if they are several."""
        return self.active[0] if len(self.active) == 1 else list(self.active)

    @active_adapter.setter
    def active_adapter(self, names: str | list[str]) -> None:
        self.set_adapter(names)

    @changes
    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter, or several that apply in the given order; exactly they become trainable."""
        names = as_names(adapter_name)
        tuner.check_known(names, self.peft_config)
        merged = {n for _, h in hosts(self) for n in h.merged}
        if merged:
            warnings.warn(f"unmerging {', '.join(sorted(merged))} before switching", AfinaWarning, stacklevel=4)
            self.unmerge_adapter()
        tuner.activate(self, names, trainable=() if inference_mode else None)

    @changes
    def set_requires_grad(self, adapter_names: str | list[str], requires_grad: bool = True) -> None:
        """Freeze or unfreeze adapters without activating them."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        tuner.check_known(names, self.peft_config)
        tuner.set_requires_grad(self, names, requires_grad)

    @changes
    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; if it was the only active one, the first of the remaining becomes active."""
        tuner.check_known([adapter_name], self.peft_config)
        delete(self, adapter_name)
        del self.peft_config[adapter_name]
        left = tuple(n for n in self.active if n != adapter_name)
        if not left and self.peft_config:
            left = (next(iter(self.peft_config)),)
            warnings.warn(f"adapter {left[0]!r} is active now", AfinaWarning, stacklevel=4)
        tuner.activate(self, left)

    @changes
    def enable_adapter_layers(self) -> None:
        """Let the active adapters apply (again)."""
        tuner.enable(self, True)

    @changes
    def disable_adapter_layers(self) -> None:
        """Let no adapter apply, in any thread, until `enable_adapter_layers`; what trains is not touched."""
        tuner.enable(self, False)

    @changes
    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = True, requantise: bool = False
    ) -> None:
        """Merge adapters (the active ones) into the base weights; `unmerge_adapter` gives the original bits back.

        Args:
            requantise: merge into quantised weights too, and warn of how much of the update that lost.

        Raises:
            NotMergeable, NumericError, MergeError: nothing was changed.
        """
        names = as_names(adapter_names or self.active)
        tuner.check_known(names, self.peft_config)
        if adapter_names and names != self.active[: len(names)]:
            warnings.warn("the merged adapters are not the first of the active ones, so the order in which they apply "
                          "changes", AfinaWarning, stacklevel=3)  # fmt: skip
        tuner.merge(self, names, requantise)

    @changes
    def unmerge_adapter(self) -> None:
        """Give every base weight its original bits back."""
        tuner.unmerge(self)

    @changes
    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = True,
        adapter_names: list[str] | None = None,
        requantise: bool = False,
    ) -> nn.Module:
        """The base model with adapters (the active ones) merged for good; `requantise` as for `merge_adapter`.

        Raises:
            NotMergeable, NumericError, MergeError: nothing was changed.
        """
        names = as_names(adapter_names or self.active)
        tuner.check_known(names, self.peft_config)
        fuse(self, names, requantise)
        return self.model

    @changes
    def unload(self) -> nn.Module:
        """The base model with its original bits and without adapters."""
        tuner.unmerge(self)
        strip(self, keep_saved=False)
        if self.replicated is not None:
            self.replicated.undo()
            self.replicated = None
        if self.vocabulary is not None:
            self.vocabulary.restore(self.model)
            self.vocabulary = None
        return self.model

    @property
    def targeted_module_names(self) -> list[str]:
        """The modules that carry an adapter, by their names in the plain model."""
        return [n for n, h in self._targets() if h.parameter is None]

    @property
    def targeted_parameter_names(self) -> list[str]:
        """The parameters that `target_parameters` chose, by their names in the plain model."""
        return [f"{n}.{h.parameter.rpartition('.')[2]}" for n, h in self._targets() if h.parameter is not None]

    def _targets(self) -> list[tuple[str, Host]]:
        found = [(n, h) for n, h in hosts(self.model) if not isinstance(h, ModulesToSaveWrapper) and h.names()]
        return [(".".join(p for p in n.split(".") if p not in ("base_layer", "original_module")), h) for n, h in found]

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether `convert_to_lora` can take the adapter: a change of matrices, and nothing else but trained copies."""
        layers = [h for _, h in self._targets() if adapter_name in h.names()]
        elsewhere = adapter_name in self.prompt_encoder or adapter_name in routers(self)
        return bool(layers) and not elsewhere and all(h.supports_lora_conversion(adapter_name) for h in layers)

    def get_model_status(self) -> TunerModelStatus:
        """What `afina.get_model_status` gives."""
        return get_model_status(self)

    def get_layer_status(self) -> list[TunerLayerStatus]:
        """What `afina.get_layer_status` gives."""
        return get_layer_status(self)

    @staticmethod
    def get_model_config(model: nn.Module) -> dict[str, Any]:
        """The model's config as a dictionary; the reference puts `model_type: custom` where there is none."""
        config: Any = getattr(model, "config", None)
        found = config.to_dict() if hasattr(config, "to_dict") else config
        return dict(found) if found else {"model_type": "custom"}

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        svd_full_matrices: bool = True,
        svd_driver: str | None = None,
        density: float | None = None,
        majority_sign_method: str = "total",
    ) -> Retained:
        """Combine adapters into a new one, neither active nor trainable.

        Args:
            adapters: names of loaded adapters.
            weights: a finite number for each.
            adapter_name: the new one's name.
            combination_type: `cat` puts the factors side by side and `svd` cuts the weighted sum of the updates ΔW to
                `svd_rank`: both mean that sum. `linear`, `ties`, `dare_linear`, `dare_ties` and `magnitude_prune`
                combine A and B each by themselves, which does not; with `_svd` they combine the updates. The `svd`
                kinds take adapters of any method with a ΔW. IA³'s factors are always combined linearly.
            svd_rank: the largest rank of the adapters if None.
            svd_clamp: clamp the factors to this quantile of theirs.
            svd_full_matrices: accepted for the reference's sake; the result is the same.
            svd_driver: for `torch.linalg.svd`, on GPUs.
            density: the share of elements that `ties`, `dare` and `magnitude_prune` keep.
            majority_sign_method: of `ties`: "total" or "frequency".

        Returns:
            For each layer, how much of ||ΔW||² the new adapter keeps: for the `svd` kinds of what was combined, for the
            others of the weighted sum.

        Raises:
            NameTakenError, ConfigError, NotMergeable, MergeError: nothing was changed.
        """
        what = Combination(combination_type, density, majority_sign_method, svd_rank, svd_clamp, svd_driver)
        with self.scope.users.changing():
            return add_weighted_adapter(self, self.model, self.peft_config, adapters, weights, adapter_name, what)
