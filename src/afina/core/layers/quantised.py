"""Linear layers whose weight is stored in few bits: what they share, and what is done with all of a model's.

Such a layer runs by its own forward. Its weight is dequantised when a method asks for it, and written to on request
only. Layers are known by their class and structure: nothing is imported for it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import MergeError
from .sharded import whole
from .weights import LinearWeight


class QuantisedWeight(LinearWeight):
    """A linear layer with a quantised weight: give `dequantised`, and `requantised` where the format can be written.

    Attributes:
        storage: the format's name, as `get_layer_status` reports it.
        any_input_dtype: whether the layer casts its input itself.
        lost: share of the last merged update that requantising lost, in Frobenius norms.
    """

    storage: ClassVar[str] = ""
    any_input_dtype: ClassVar[bool] = False
    lost: float = 0.0

    @property
    def quantised(self) -> bool:
        return True

    @property
    def weight(self) -> Any:
        """The stored numbers, in whatever layout."""
        return getattr(self.module, self.weight_name)

    @property
    def bias(self) -> Any:
        return getattr(self.module, self.bias_name, None)

    @property
    def shape(self) -> tuple[int, ...]:
        layer: Any = self.module
        return layer.out_features, layer.in_features

    def dequantised(self) -> Tensor:
        """The weight that the layer multiplies by now: (out, in), floating point."""
        raise NotImplementedError

    def requantised(self, weight: Tensor) -> nn.Parameter:
        """A weight (out, in) in this layer's format.

        Raises:
            MergeError: the format cannot be written here.
        """
        raise MergeError("this format cannot be written", where=self.storage, got=type(self.module).__name__,
                         fix="merge from the 16-bit base")  # fmt: skip

    def read(self) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            weight = self.dequantised().detach()
        return weight, None if self.bias is None else whole(self.bias)

    def replace(self, weight: Tensor, bias: Tensor | None) -> None:
        before = self.read()[0].to(weight.dtype)
        update, new = (weight - before).norm(), dict[str, nn.Parameter | None]()
        if update > 0:
            new[self.weight_name] = self.requantised(weight.detach().to(self.dtype))
        if bias is not None and bias is not self.bias:
            dtype = self.dtype if self.bias is None else self.bias.dtype
            new[self.bias_name] = nn.Parameter(bias.detach().to(dtype).clone(), requires_grad=False)
        self.restore(new)
        self.lost = float((self.read()[0].to(weight.dtype) - weight).norm() / update) if update > 0 else 0.0

    def check_merge(self, requantise: bool) -> None:
        super().check_merge(requantise)
        if not self.quantised or requantise:
            return
        raise MergeError("merging into a quantised weight would round most of the update away", where=self.storage,
                         fix="load the base in 16 bits and merge there (as `afina merge` does), or pass "
                             "requantise=True")  # fmt: skip

    def unpack(self) -> None:
        """Undo a change of layout that inference made and that gradients and files cannot do with."""

    def dense(self) -> nn.Linear:
        """A layer of its own with the dequantised weight."""
        weight, bias = self.read()
        out = nn.Linear(self.in_features, self.out_features, bias is not None, weight.device, self.dtype)
        with torch.no_grad():
            out.weight.copy_(weight)
            if bias is not None:
                out.bias.copy_(bias)
        return out
