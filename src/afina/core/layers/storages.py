"""The quantised formats: how each is recognised, read and written. Those not listed are multiplied with the identity.

bitsandbytes: Dettmers et al. 2022, arXiv 2208.07339; 2023, arXiv 2305.14314. torchao. HQQ: Badri, Shaji 2023.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .packed_ints import AwqWeight, GptqWeight
from .quantised import QuantisedWeight
from .sharded import is_spread, whole
from .weights import BaseWeight


class Bits4Weight(QuantisedWeight):
    """bitsandbytes Linear4bit: NF4 or FP4, absolute maxima of blocks of 64.

    On CPUs with AVX512-BF16 its first forward in eval mode repacks the codes for a kernel in bfloat16 that has no
    gradient. Dequantising those bytes as if they were in the plain order gives another weight altogether (bitsandbytes
    0.50), and saving them shuffles the maxima; both are avoided here.
    """

    storage = "bnb 4bit"
    any_input_dtype = True

    @property
    def state(self) -> Any:
        """bitsandbytes' description of the codes; None before quantising."""
        held = getattr(self.weight, "quant_state", None)
        # What spreads a weight knows its numbers only; the layer gives them their description where it runs.
        return getattr(self.module, "quant_state", None) if held is None and is_spread(self.module) else held

    @property
    def quantised(self) -> bool:
        return self.state is not None

    @property
    def is_packed(self) -> bool:
        """Whether the codes lie in the CPU kernel's order."""
        return bool(getattr(self.state, "packing_format_for_cpu", False))

    @property
    def dtype(self) -> torch.dtype:
        if self.state is None:
            return super().dtype
        dtype: torch.dtype = self.state.original_dtype if self.is_packed else self.state.dtype
        return dtype

    def run(self, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else next(iter(kwargs.values()))
        if not self.is_packed or not x.requires_grad or not torch.is_grad_enabled():
            return super().run(*args, **kwargs)
        dtype = getattr(self.module, "compute_dtype", None) or x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        out: Tensor = F.linear(x.to(dtype), self.read()[0].to(dtype), bias).to(x.dtype)
        return out

    def _codes(self) -> Tensor:
        """(out, in) codes of a packed weight: rows in blocks of 32, of which a byte holds one of each half."""
        out, width = self.state.shape
        halves = self.weight.data.reshape(-1, 32)
        pairs = torch.cat([halves & 15, halves >> 4], dim=-1).view(out // 32, width // 2, 32, 2)
        return pairs.transpose(1, 2).reshape(out, width)

    def dequantised(self) -> Tensor:
        state = self.state
        if state is None:
            return self.weight.data  # type: ignore[no-any-return]
        if not self.is_packed:
            functional = importlib.import_module("bitsandbytes.functional")
            return functional.dequantize_4bit(whole(self.weight.detach()), state)  # type: ignore[no-any-return]
        scale = state.absmax.T.float().repeat_interleave(state.blocksize, dim=1)
        values: Tensor = state.code.float()[self._codes().int()] * scale
        return values.to(state.original_dtype)

    def unpack(self) -> None:
        if self.quantised and (self.out_features % 32 or self.in_features % self.state.blocksize):
            layer: Any = self.module
            layer.support_avx512bf16_for_cpu = False  # its kernel stops at such sizes
        if not self.is_packed:
            return
        state, codes = self.state, self._codes()
        stored = ((codes[:, ::2] << 4) | codes[:, 1::2]).reshape(state.original_qshape)
        self.weight.data = stored.view(getattr(state, "original_storage_type", None) or torch.uint8)
        state.absmax = state.absmax.T.reshape(-1).float()
        state.dtype, state.nested, state.packing_format_for_cpu = state.original_dtype, False, False

    def requantised(self, weight: Tensor) -> nn.Parameter:
        old: Any = self.weight
        nested = self.state.original_nested if self.is_packed else self.state.nested
        new = type(old)(weight.contiguous(), requires_grad=False, blocksize=self.state.blocksize,
                        compress_statistics=nested, quant_type=self.state.quant_type,
                        quant_storage=old.quant_storage, module=self.module)  # fmt: skip
        return new.to(old.device)  # type: ignore[no-any-return]

    def replace(self, weight: Tensor, bias: Tensor | None) -> None:
        super().replace(weight, bias) if self.quantised else BaseWeight.replace(self, weight, bias)

    def restore(self, parameters: dict[str, nn.Parameter | None]) -> None:
        super().restore(parameters)
        self.module.quant_state = self.state


class Bits8Weight(QuantisedWeight):
    """bitsandbytes Linear8bitLt: one scale an output; in eval mode its forward rounds its input to 8 bits too."""

    storage = "bnb 8bit"
    any_input_dtype = True

    @property
    def quantised(self) -> bool:
        return bool(self.weight.dtype == torch.int8)

    @property
    def dtype(self) -> torch.dtype:
        # The layer computes in its input's dtype; what it was made from is not recorded.
        return torch.float32 if self.bias is None else self.bias.dtype

    def _parts(self) -> tuple[Tensor, Tensor]:
        layer: Any = self.module
        held = self.weight if getattr(self.weight, "CB", None) is not None else layer.state
        return held.CB, held.SCB

    def dequantised(self) -> Tensor:
        if not self.quantised:
            return self.weight.data  # type: ignore[no-any-return]
        codes, scale = self._parts()
        return codes.float() * (scale.float() / 127)[:, None]

    def parameters(self) -> dict[str, nn.Parameter | None]:
        # The first forward moves codes and scales into the module's state; whoever keeps the parameter needs them.
        if self.quantised:
            self.weight.CB, self.weight.SCB = self._parts()
        return super().parameters()

    def requantised(self, weight: Tensor) -> nn.Parameter:
        old: Any = self.weight
        new = type(old)(weight.contiguous().cpu(), requires_grad=False, has_fp16_weights=False)
        return new.to(old.device)  # type: ignore[no-any-return]

    def replace(self, weight: Tensor, bias: Tensor | None) -> None:
        super().replace(weight, bias) if self.quantised else BaseWeight.replace(self, weight, bias)


class TorchaoWeight(QuantisedWeight):
    """nn.Linear whose weight is one of torchao's tensors."""

    storage = "torchao"

    def dequantised(self) -> Tensor:
        return self.weight.dequantize()  # type: ignore[no-any-return]

    def requantised(self, weight: Tensor) -> nn.Parameter:
        old: Any = self.weight.data
        if type(old).__name__ == "IntxUnpackedToInt8Tensor":
            new = type(old).from_hp(weight, old.block_size, old.target_dtype)
        elif type(old).__name__ == "Int8Tensor":
            granularity = importlib.import_module("torchao.quantization.granularity")
            whole = old.block_size[-1] == weight.shape[-1]
            new = type(old).from_hp(weight, granularity.PerRow() if whole else
                                    granularity.PerGroup(old.block_size[-1]))  # fmt: skip
        else:
            return super().requantised(weight)
        return nn.Parameter(new, requires_grad=False)


class HqqWeight(QuantisedWeight):
    """HQQLinear: groups with a zero point that a robust loss chose; the layer dequantises itself."""

    storage = "hqq"
    weight_name = "W_q"

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.module.compute_dtype  # type: ignore[assignment]
        return dtype

    @property
    def bias(self) -> Any:
        bias = getattr(self.module, "bias", None)
        return None if bias is None else bias.detach()

    def dequantised(self) -> Tensor:
        return self.module.dequantize()  # type: ignore[operator, no-any-return]


class ProbedWeight(QuantisedWeight):
    """Any other quantised linear layer (EETQ, AQLM, ...): its weight is what it does to the unit vectors."""

    storage = "read by probing"

    @property
    def weight(self) -> Any:
        tensors = [*self.module._parameters.values(), *self.module._buffers.values()]
        return max((t for t in tensors if t is not None), key=lambda t: t.numel() * t.element_size())

    @property
    def dtype(self) -> torch.dtype:
        tensors = [*self.module._parameters.values(), *self.module._buffers.values()]
        return next((t.dtype for t in tensors if t is not None and t.is_floating_point()), torch.float16)

    def parameters(self) -> dict[str, nn.Parameter | None]:
        return {}

    def dequantised(self) -> Tensor:
        units = torch.eye(self.in_features, dtype=self.dtype, device=self.device)
        out: Tensor = self.module(units)
        return (out if self.bias is None else out - self.bias).T.contiguous()


def _has(*names: str) -> Callable[[nn.Module], bool]:
    return lambda m: all(n in m._parameters or n in m._buffers or n in m.__dict__ for n in names)


def _is_a(name: str) -> Callable[[nn.Module], bool]:
    return lambda m: any(c.__name__ == name for c in type(m).__mro__)


def _is_torchao(m: nn.Module) -> bool:
    weight = m._parameters.get("weight") if isinstance(m, nn.Linear) else None
    return type(weight).__module__.startswith("torchao.") and hasattr(weight, "dequantize")


def _is_int8(m: nn.Module) -> bool:
    return _is_a("Linear8bitLt")(m) and not m.state.has_fp16_weights  # type: ignore[union-attr]


def _is_awq(m: nn.Module) -> bool:
    layer: Any = m
    return _has("qweight", "qzeros", "scales")(m) and layer.qweight.shape[0] == getattr(layer, "in_features", None)


FORMATS: tuple[tuple[Callable[[nn.Module], bool], type[QuantisedWeight]], ...] = (
    (_is_a("Linear4bit"), Bits4Weight),
    (_is_int8, Bits8Weight),
    (_is_torchao, TorchaoWeight),
    (_is_a("HQQLinear"), HqqWeight),
    (_has("qweight", "qzeros", "scales", "g_idx"), GptqWeight),
    (_is_awq, AwqWeight),
    (_has("qweight", "scales", "in_features"), ProbedWeight),
    (_has("weight_scales", "in_features"), ProbedWeight),
    (_has("codebooks", "in_features"), ProbedWeight),
)
"""How a format is known -> its view; the first that fits counts."""


def quantised_weight(module: nn.Module) -> QuantisedWeight | None:
    """The view of a quantised linear layer, or None for any other module."""
    found = next((weight for knows, weight in FORMATS if knows(module)), None)
    return None if found is None else found(module)
