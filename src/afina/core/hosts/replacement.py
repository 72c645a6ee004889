"""Adapters that run a trainable copy of a module in its place."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import NumericError
from ..layers.recognise import base_weight
from ..layers.weights import in_own_dtype
from ..layers.whole_model import dense_copy
from .adapter import Adapter, Site
from .tied import Tied

if TYPE_CHECKING:
    from .view import View


def _by_keyword(module: nn.Module, keyword: str, x: Any, **others: Any) -> Any:
    return module(**{keyword: x}, **others)


class Replacement(Adapter):
    """A trainable copy of the module, run in its place."""

    with_attention_output = False
    kinds = frozenset({"linear", "conv", "embedding", "attention", "module"})

    def __init__(self, site: Site, config: Any, module: nn.Module | None = None) -> None:
        super().__init__(site, config)
        self.copy = _bare(dense_copy(site.base.module if module is None else module)).requires_grad_(True)
        self.dtypes = {name: tensor.dtype for name, tensor in self.copy.state_dict().items()}
        self.ties = bool(getattr(config, "ensure_weight_tying", False))
        self.is_weight = site.base.kind != "module"
        if site.dtype.is_floating_point:
            self.copy.to(site.dtype)
        if site.device.type == "meta":
            # Parameters only: buffers that no file holds have to keep their values.
            for module in self.copy.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        module._parameters[name] = nn.Parameter(parameter.to("meta"))

    def forward(self, inner: View, x: Any) -> Any:
        if inner.keyword is not None:
            return in_own_dtype(functools.partial(_by_keyword, self.copy, inner.keyword), self.dtype, x, **inner.kwargs)
        return in_own_dtype(self.copy, self.dtype, x, *inner.args, **inner.kwargs)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return base_weight(self.copy).read()

    def hides(self, earlier: Adapter) -> bool:
        return isinstance(earlier, Replacement)

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name.startswith("__") or "copy" not in modules or name in modules:
            return super().__getattr__(name)
        return getattr(modules["copy"], name)  # the reference has the copy itself here

    def refuse_not_finite(self) -> None:
        """Refuse to be put in the module's place for good.

        Raises:
            NumericError: a number of the copy is not finite.
        """
        for name, tensor in self.copy.state_dict().items():  # running means too
            if not torch.isfinite(tensor).all():
                raise NumericError("the trained copy is not finite", where=name)

    def tied(self, site: Site) -> Adapter | None:
        """With `ensure_weight_tying` the output head takes the copy of the embedding whose weight it shares."""
        return TiedCopy(site, self) if self.ties and site.base.kind == "linear" else None

    def disk_state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n.removeprefix("copy."): t for n, t in own.items()}

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.assign({f"copy.{n}": t for n, t in tensors.items()})


class TiedCopy(Tied):
    """The embedding's trained copy on the head that shares its weight; stored a second time, as the reference does."""

    def disk_state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"weight": self.sources[0].get_parameter("copy.weight")}

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The embedding's adapter has it."""


def _bare(module: nn.Module) -> nn.Module:
    """A copied module without the hosts of other adapters in it: each place gets its layer with the original bits."""
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            found: Any = child
            while getattr(type(found), "base_slot", None) is not None:
                found.unmerge()
                found = found.base_layer
            parent._modules[name] = found
    return module


def settled(adapter: Adapter | None, original: nn.Module, *, weights: bool) -> nn.Module:
    """What stays in a module's place for good: the original, or its trained copy in the dtypes of the original, because
    nobody casts around it then.

    Args:
        adapter: the last active one.
        original: the module.
        weights: whether copies of layers count too, whose weights are not merged.
    """
    if not isinstance(adapter, Replacement) or (adapter.is_weight and not weights):
        return original
    there = {name: t.dtype for name, t in original.state_dict().items() if torch.is_floating_point(t)}
    for prefix, module in adapter.copy.named_modules():
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            name = f"{prefix}.{leaf}" if prefix else leaf
            if tensor is not None and tensor.is_floating_point():
                tensor.data = tensor.data.to(there.get(name, adapter.dtypes.get(name, tensor.dtype)))
    return adapter.copy
