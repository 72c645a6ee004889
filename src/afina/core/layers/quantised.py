"""Linear layers whose weight is stored in few bits: what they share, and what is done with all of a model's.

Such a layer runs by its own forward. Its weight is dequantised when a method asks for it, and written to on request
only. Layers are known by their class and structure: nothing is imported for it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import AfinaWarning, MergeError
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
        return weight, self.bias

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


def quantised_weight(module: nn.Module) -> QuantisedWeight | None:
    """The view of a quantised linear layer, or None for any other module."""
    from .storages import FORMATS

    found = next((weight for knows, weight in FORMATS if knows(module)), None)
    return None if found is None else found(module)


def dense_copy(module: nn.Module) -> nn.Module:
    """A deep copy that can train: quantised layers in it are dense. Configs stay the model's, so that what it is told
    later (another attention, say) reaches its copied layers too."""
    own = quantised_weight(module)
    if own is not None:
        return own.dense()
    if not any(quantised_weight(m) for m in module.modules()):
        configs = (m.__dict__.get("config") for m in module.modules())
        return copy.deepcopy(module, {id(config): config for config in configs if config is not None})
    out = copy.copy(module)
    for slot in ("_parameters", "_buffers"):
        setattr(out, slot, {n: copy.deepcopy(t) for n, t in getattr(module, slot).items()})
    out._modules = {n: None if child is None else dense_copy(child) for n, child in module._modules.items()}
    return out


def unpack(model: nn.Module) -> None:
    """Give all weights the layout in which they have gradients and can be saved."""
    for module in model.modules():
        found = quantised_weight(module)
        if found is not None:
            found.unpack()


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) numbers of parameters; of quantised weights, the number that they stand for."""
    trainable = total = 0
    stored: set[int] = set()
    for module in model.modules():
        found = quantised_weight(module)
        if found is not None and found.quantised and id(found.weight) not in stored:
            stored.add(id(found.weight))
            total += found.out_features * found.in_features
            if found.bias is not None and module._parameters.get(found.bias_name) is None:  # kept as a buffer
                total += found.bias.numel()
    for parameter in model.parameters():
        if id(parameter) not in stored:
            count = parameter.numel() or int(getattr(parameter, "ds_numel", 0))
            if type(parameter).__name__ == "Params4bit":  # an embedding's: two numbers in a byte
                count *= 2 * getattr(getattr(parameter, "quant_storage", torch.uint8), "itemsize", 1)
            total += count
            trainable += count if parameter.requires_grad else 0
    return trainable, total


def report_lost(bases: Iterable[Any]) -> None:
    """After merging: say what requantising lost."""
    lost = [base.lost for base in bases if base.quantised]
    if lost:
        warnings.warn(
            f"{len(lost)} weights were requantised; the merged updates lost {min(lost):.0%} to {max(lost):.0%} of "
            f"themselves (mean {sum(lost) / len(lost):.0%}); unmerging gives the original bits back",
            AfinaWarning, stacklevel=4,
        )  # fmt: skip
