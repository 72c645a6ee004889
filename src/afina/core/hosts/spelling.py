"""A host under the names that scripts written for the reference use."""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ...errors import CheckpointError, NameTakenError, NotMergeable
from .adapter import Adapter, DeltaWeight
from .held import spelled

if TYPE_CHECKING:
    from ..layers.weights import BaseWeight
    from .calls import Scope


class ReferenceSpelling(nn.Module):
    """What the reference's layers offer beside their forward."""

    if TYPE_CHECKING:
        active: tuple[str, ...]
        merged: tuple[str, ...]
        base: BaseWeight

        @property
        def applies(self) -> bool: ...

        stack: tuple[Adapter, ...]

        biases: nn.ParameterDict | dict[str, nn.Parameter]
        adapter_slot: str

        enabled: bool
        saved: dict[str, nn.Parameter | None]
        scope: Scope

        def adapter(self, name: str) -> Adapter | None: ...
        def names(self) -> list[str]: ...
        def set_active(self, names: tuple[str, ...]) -> None: ...
        def require_grad(self, names: tuple[str, ...]) -> None: ...
        def remove(self, name: str) -> None: ...

    @property
    def active_adapters(self) -> list[str]:
        return list(self.active)

    @property
    def active_adapter(self) -> list[str]:
        return list(self.active)

    @property
    def merged_adapters(self) -> list[str]:
        return list(self.merged)

    @property
    def in_features(self) -> int:
        """What comes in: features, channels, or rows of a table."""
        return self._size("in_features", "in_channels", "num_embeddings")

    @property
    def out_features(self) -> int:
        """What comes out: features, channels, or numbers of a token."""
        return self._size("out_features", "out_channels", "embedding_dim")

    def _size(self, feature: str, *others: str) -> int:
        found = next((getattr(self.base.module, n) for n in (feature, *others) if hasattr(self.base.module, n)), None)
        if found is None and self.base.kind in ("linear", "attention"):
            found = getattr(self.base, feature)
        if found is None:
            raise AttributeError(f"{type(self.base.module).__name__} has no {feature}")
        return int(found)

    @property
    def disable_adapters(self) -> bool:
        return not self.applies

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters on this layer and make exactly them trainable."""
        names = (adapter_names,) if isinstance(adapter_names, str) else tuple(adapter_names)
        self.set_active(names)
        self.require_grad(() if inference_mode else names)

    @property
    def token_adapter(self) -> Any:
        """Where chosen tokens train beside another method, the layer itself; an AttributeError elsewhere."""
        if not any(getattr(a, "folder", "") for a in self._all()):
            raise AttributeError("no tokens train here beside another method")
        return self

    @property
    def adapter_layer_names(self) -> tuple[str, ...]:
        """The names under which the layer has its adapters' tensors, as `layer.NAME[adapter]`."""
        named = {d.partition(".")[0]: a for a in self._all() for d in spelled(a).values()}
        return tuple(n for n, a in named.items() if a.prefix and n.startswith(a.prefix)) or (self.adapter_slot,)

    @property
    def other_param_names(self) -> tuple[str, ...]:
        """The names of the adapters' settings, as `layer.NAME[adapter]`."""
        return tuple(sorted({n for a in self._all() for n in a.reference_attributes}))

    def _all(self) -> list[Adapter]:
        return [a for n in self.names() if (a := self.adapter(n)) is not None]

    def set_requires_grad(self, adapter_names: str | list[str], requires_grad: bool = True) -> None:
        """Freeze or unfreeze adapters of this layer without activating them."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            found = self.adapter(name)
            for parameter in [] if found is None else found.trainable().values():
                parameter.requires_grad_(requires_grad)
            if name in self.biases:
                self.biases[name].requires_grad_(requires_grad)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether the adapter's change of this layer is one of a weight."""
        found = self.adapter(adapter_name)
        return found is not None and type(found).merged is not Adapter.merged and self.base.kind in DeltaWeight.kinds

    def get_base_weight(self) -> Tensor:
        """The wrapped layer's weight in its own layout, dequantised, whatever is merged into it."""
        return self.base.stored(self.base.read()[0])

    def get_delta_weight(self, adapter: str) -> Tensor:
        """ΔW of an adapter, so that the original weight + ΔW is the merged one, in the weight's own layout;
        differentiable. Where merging does more than add to it, what is added alone.

        Raises:
            NameTakenError: the layer has no such adapter.
            NotMergeable: the method is no sum of the weight and an update.
        """
        found = self.adapter(adapter)
        if found is None:
            raise NameTakenError("the layer has no adapter of this name", where="get_delta_weight", got=adapter,
                                 expected=", ".join(self.names()) or "none")  # fmt: skip
        delta = getattr(type(found), "delta", None)
        if delta is None:
            raise NotMergeable("the method adds no update to the weight", where=f"get_delta_weight: {adapter}",
                               got=type(found).__name__, fix="layer.adapter(name).merged(weight, bias) gives the new "
                               "weight and bias")  # fmt: skip
        if found.training:  # a copy draws nothing, and others may be calling the layer meanwhile
            found = copy.copy(found)
            found.training = False
        merged = self.saved if self.enabled else {}
        with self.scope.swapping if merged else contextlib.nullcontext():
            before = self.base.parameters()
            self.base.restore(merged)
            try:
                return self.base.stored(delta(found, self.base.read()[0].to(found.dtype)))
            finally:
                self.base.restore(before if merged else {})

    def delete_adapter(self, adapter_name: str) -> None:
        self.remove(adapter_name)

    def adapter_state_dict_load_map(self, adapter_name: str) -> dict[str, str]:
        """Key in the adapter's file -> key in the model's `state_dict()`, both relative to this layer.

        Raises:
            CheckpointError: the file holds something that is computed from the parameters.
        """
        own, found = {}, self.adapter(adapter_name)
        if found is not None and found.loaded_whole:
            return {}
        if found is not None:
            own = found.state_dict(keep_vars=True)
        names = {id(tensor): f"{self.adapter_slot}.{adapter_name}.{n}" for n, tensor in own.items()}
        disk = {} if found is None else found.disk_state(own)
        if any(id(tensor) not in names for tensor in disk.values()):
            raise CheckpointError("this method's file cannot be loaded by renaming tensors", where=adapter_name,
                                  fix="load it with PeftModel.from_pretrained(model, path)")  # fmt: skip
        if adapter_name in self.biases:
            disk["base_layer.bias" if own else "bias"] = self.biases[adapter_name]
            names[id(self.biases[adapter_name])] = f"biases.{adapter_name}"
        return {key: names[id(tensor)] for key, tensor in disk.items()}

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set the factor of an adapter's own scaling."""
        found: Any = self.adapter(adapter)
        if hasattr(found, "initial_scaling"):
            found.scaling = scale * found.initial_scaling

    def _scaled(self) -> list[Any]:
        return [a for a in self.stack if hasattr(a, "initial_scaling")]

    def scale_layer(self, scale: float) -> None:
        """Multiply the active adapters' scaling."""
        for adapter in self._scaled():
            adapter.scaling = adapter.scaling * scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the active adapters' scaling, or reset it."""
        for adapter in self._scaled():
            adapter.scaling = adapter.initial_scaling if scale is None else adapter.scaling / scale
