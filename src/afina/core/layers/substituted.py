"""Weights inside a larger computation, which runs with others in their place: attention, experts, whole modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NotAWeight
from .partitioned import shape_of
from .weights import BaseWeight


class SubstitutedWeight(BaseWeight):
    """A weight inside a larger computation: that runs with other parameters in the layer's own dtype."""

    additive = False
    casts_input = False

    @property
    def swaps(self) -> bool:
        return bool(self.module._modules)

    def apply(self, x: Any, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        return self.substitute(x, weight.to(self.dtype), None if bias is None else bias.to(self.dtype), *args, **kwargs)


class AttentionWeight(SubstitutedWeight):
    """The input projection of nn.MultiheadAttention, which computes with its weights without calling a layer."""

    weight_name = "in_proj_weight"
    bias_name = "in_proj_bias"
    kind = "attention"

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        if not module._qkv_same_embed_dim:
            raise NotAWeight("attention with separate key and value sizes is not one weight",
                             where=type(module).__name__, expected="kdim == vdim == embed_dim")  # fmt: skip


class ParameterWeight(SubstitutedWeight):
    """One named parameter of a module, such as the stacked experts (experts, out, in) of a mixture."""

    has_bias = False

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__(module)
        self.weight_name = name  # type: ignore[misc]
        shape = shape_of(self.weight)
        if len(shape) not in (2, 3):
            raise NotAWeight("only 2-D and 3-D parameters can be adapted", where=name, got=shape)
        self.kind = "experts" if len(shape) == 3 else "parameter"  # type: ignore[misc]

    def canonical(self, stored: Tensor) -> Tensor:
        return stored.mT if getattr(self.module, "is_transposed", False) and stored.dim() == 3 else stored


class OwnWeight(SubstitutedWeight):
    """Any other module: its parameters can be replaced for a call, but it is no linear operator."""

    kind = "module"

    @property
    def swaps(self) -> bool:
        return False  # whoever adapts a module of modules runs it as it is

    @property
    def dtype(self) -> torch.dtype:
        first = next(self.module.parameters(), None)
        return torch.get_default_dtype() if first is None else first.dtype

    @property
    def device(self) -> torch.device:
        first = next(self.module.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def parameters(self) -> dict[str, nn.Parameter | None]:
        return {n: p for n, p in self.module.named_parameters(recurse=False) if n in ("weight", "bias")}

    def read(self) -> tuple[Tensor, Tensor | None]:
        if getattr(self.module, "weight", None) is None:
            raise NotAWeight("this module has no weight", where=type(self.module).__name__)
        return self.weight, self.bias
