"""Which operator a module is."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .cut import cut_of
from .sharded import runs_whole
from .storages import quantised_weight
from .substituted import AttentionWeight, OwnWeight, ParameterWeight
from .tensor_parallel import CutLinear
from .weights import BaseWeight, ConvWeight, EmbeddingWeight, LinearWeight, TransposedLinearWeight


def base_weight(module: nn.Module, parameter: str | None = None) -> BaseWeight:
    """The view of a module (or of one named parameter of it) as an operator."""
    if parameter is not None:
        return ParameterWeight(module, parameter)
    if type(module) is nn.Linear and runs_whole(module.weight):
        return LinearWeight(module)
    if is_parametrized(module):  # its weight is computed from others, as weight norm does
        return OwnWeight(module)
    if (cut := cut_of(module)) is not None:
        return CutLinear(module, cut)
    if (found := quantised_weight(module)) is not None:
        return found
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return TransposedLinearWeight(module)
    kinds = {nn.Linear: LinearWeight, nn.modules.conv._ConvNd: ConvWeight, nn.Embedding: EmbeddingWeight,
             nn.MultiheadAttention: AttentionWeight, nn.Module: OwnWeight}  # fmt: skip
    return next(weight(module) for kind, weight in kinds.items() if isinstance(module, kind))
