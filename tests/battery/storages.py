"""How a linear layer's weight may be stored: every storage is built from the same dense toy model.

A storage whose package cannot be imported is skipped, and says so.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from afina.core.layers.whole_model import dense_copy

from .kinds import Chain, Kind, Layer
from .table import ROWS, Row

WIDTH, HIDDEN, OUT = 64, 128, 64
"""bitsandbytes' kernel for CPUs takes blocks of 32 outputs and of 64 inputs."""


@dataclass(frozen=True)
class Storage:
    """One format.

    Attributes:
        name: as recipes name it, where they do.
        package: what has to be importable.
        layer: a dense linear layer in this format.
        reports: what `get_layer_status` calls it.
        twin: whether another storage here is read by the same code, so that most facts are shown on fewer rows.
        gaps: (check, row or "") -> why the check does not apply there.
    """

    name: str
    package: str
    layer: Callable[[nn.Linear], nn.Module]
    reports: str
    twin: bool = False
    gaps: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def is_here(self) -> bool:
        return not self.package or importlib.util.find_spec(self.package) is not None

    def gap(self, check: str, row: Row) -> str | None:
        """Why a check does not apply, or None if it does."""
        if check == "oracle" and row.name not in COMPARED.get(self.package, ()):
            return "the reference cannot adapt this storage with this method"
        return self.gaps.get((check, row.name)) or self.gaps.get((check, "")) or self.gaps.get(("", row.name))

    def kind(self, row: Row, dtype: torch.dtype = torch.float32) -> Kind:
        """The toy model in this format; what is drawn after building depends on nothing before."""

        def build() -> nn.Module:
            model = quantised(self, _dense().to(dtype))
            torch.manual_seed(3)
            return model

        return dataclasses.replace(TOY, model=build, extra=row.inputs)

    def dense_kind(self, row: Row) -> Kind:
        """The toy model with the dequantised weights in dense layers."""

        def build() -> nn.Module:
            model = dense_copy(quantised(self, _dense())).requires_grad_(False)
            torch.manual_seed(3)
            return model

        return dataclasses.replace(TOY, model=build, extra=row.inputs)


def _dense() -> nn.Module:
    model = Chain(nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, OUT), nn.Linear(OUT, 5))
    return model.requires_grad_(False)


def quantised(storage: Storage, model: nn.Module) -> nn.Module:
    """The toy model with two layers in this format, and a dense head."""
    for name in ("first", "second"):
        setattr(model, name, storage.layer(model.get_submodule(name)))
    return model


TOY = Kind(
    "linear", _dense,
    lambda: (torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(7)),),
    (Layer(HIDDEN, WIDTH, bias=HIDDEN), Layer(OUT, HIDDEN, bias=OUT)),
)  # fmt: skip


def _bnb4(quant_type: str, double: bool) -> Callable[[nn.Linear], nn.Module]:
    def build(dense: nn.Linear) -> nn.Module:
        from bitsandbytes.nn import Linear4bit

        out = Linear4bit(dense.in_features, dense.out_features, quant_type=quant_type, compress_statistics=double)
        out.to(dense.weight.dtype).load_state_dict(dense.state_dict())
        return out.to("cpu").requires_grad_(False)

    return build


def _bnb8(dense: nn.Linear) -> nn.Module:
    from bitsandbytes.nn import Linear8bitLt

    out = Linear8bitLt(dense.in_features, dense.out_features, has_fp16_weights=False)
    out.to(dense.weight.dtype).load_state_dict(dense.state_dict())
    return out.to("cpu").requires_grad_(False)


def _torchao(bits: int) -> Callable[[nn.Linear], nn.Module]:
    def build(dense: nn.Linear) -> nn.Module:
        import torchao.quantization as ao

        config = (
            ao.Int8WeightOnlyConfig()
            if bits == 8
            else ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(32))
        )
        ao.quantize_(dense, config)
        return dense.requires_grad_(False)

    return build


def _hqq(dense: nn.Linear) -> nn.Module:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    dtype = dense.weight.dtype
    return HQQLinear(dense, BaseQuantizeConfig(nbits=4, group_size=64), compute_dtype=dtype, device="cpu")


class PackedInts(nn.Module):
    """A layer as GPTQ's or AWQ's packages store it, with a forward of its own (docs/quantised.md: the real ones)."""

    def __init__(self, dense: nn.Linear, by_inputs: bool, group: int = 32) -> None:
        super().__init__()
        self.in_features, self.out_features, self.by_inputs, self.group = *dense.weight.T.shape, by_inputs, group
        w_IO = dense.weight.detach().T.float()
        w_GSO = w_IO.unflatten(0, (-1, group))
        low, high = w_GSO.amin(1), w_GSO.amax(1)
        scale_GO = ((high - low) / 15).clamp_min(1e-8)
        zero_GO = (-low / scale_GO).round().clamp(1, 15)
        codes_IO = ((w_GSO / scale_GO[:, None]).round() + zero_GO[:, None]).clamp(0, 15).flatten(0, 1).int()
        shifts = torch.arange(0, 32, 4)
        order = torch.arange(8) if by_inputs else torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
        zeros_GO = zero_GO.int() - (1 if by_inputs else 0)
        if by_inputs:
            words = (codes_IO.T.unflatten(1, (-1, 8)).long() << shifts).sum(-1).T
            self.register_buffer("g_idx", torch.arange(self.in_features, dtype=torch.int32) // group)
        else:
            words = (codes_IO.unflatten(1, (-1, 8))[..., order].long() << shifts).sum(-1)
        self.register_buffer("qweight", words.to(torch.int32).contiguous())
        zeros = (zeros_GO.unflatten(1, (-1, 8))[..., order].long() << shifts).sum(-1)
        self.register_buffer("qzeros", zeros.to(torch.int32))
        self.register_buffer("scales", scale_GO.to(dense.weight.dtype))
        self.register_buffer("bias", dense.bias.detach().clone())
        values = (codes_IO - zero_GO.repeat_interleave(group, 0)) * self.scales.repeat_interleave(group, 0)
        self.values = values.T.to(dense.weight.dtype)  # what the forward multiplies by, kept apart from the codes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.values, self.bias)


class Opaque(nn.Module):
    """A layer whose codes say nothing to anyone else, as EETQ's and AQLM's: it can only be run."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = dense.weight.shape
        scale = dense.weight.detach().abs().amax(1) / 127
        codes = (dense.weight.detach() / scale[:, None]).round().to(torch.int8)
        self.register_buffer("weight", codes.flip(0, 1).T.contiguous())
        self.register_buffer("weight_scales", scale)
        self.register_buffer("bias", dense.bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = self.weight.T.flip(0, 1).to(x.dtype)
        return nn.functional.linear(x, codes * self.weight_scales[:, None].to(x.dtype), self.bias.to(x.dtype))


_NOT_WRITTEN = {("requantise", ""): "the format cannot be written here"}

STORAGES = (
    Storage("nf4", "bitsandbytes", _bnb4("nf4", False), "bnb 4bit"),
    Storage("nf4-double", "bitsandbytes", _bnb4("nf4", True), "bnb 4bit", twin=True),
    Storage("fp4", "bitsandbytes", _bnb4("fp4", False), "bnb 4bit", twin=True),
    Storage("int8", "bitsandbytes", _bnb8, "bnb 8bit"),
    Storage("int8wo", "torchao", _torchao(8), "torchao", twin=True),
    Storage("int4wo", "torchao", _torchao(4), "torchao"),
    Storage("hqq", "hqq", _hqq, "hqq", gaps=_NOT_WRITTEN),
    Storage("gptq", "", lambda d: PackedInts(d, by_inputs=True), "gptq", gaps=_NOT_WRITTEN),
    Storage("awq", "", lambda d: PackedInts(d, by_inputs=False), "awq", twin=True, gaps=_NOT_WRITTEN),
    Storage("opaque", "", Opaque, "read by probing", gaps=_NOT_WRITTEN),
)
LINEAR_ROWS = [row for row in ROWS if "linear" in row.kinds]
FEW = ("lora", "dora", "lora-bias-all", "ia3", "hra", "oft", "lokr", "vera", "glora", "bitfit", "ln_tuning", "sparse",
       "osf", "road", "bottleneck")  # fmt: skip
"""One row for each way of using the base's weight."""

# Where the reference can be asked. Elsewhere it refuses the layer, stops with an error about dtypes or shapes, or
# (HiRA, HRA and PEANuT on int8, OSF on HQQ) multiplies by the raw codes; UniLoRA draws other indices on bitsandbytes.
_LORA = ("lora", "lora-rslora", "lora-gaussian", "lora-random-start", "lora-dropout", "lora-patterns",
         "lora-trained-head", "dora", "dora-rslora-dropout", "dora-random-start")  # fmt: skip
_BIASES = ("lora-bias-all", "lora-bias-only")
_VECTORS = ("adalora", "pvera", "fourierft", "fourierft-zero-start", "waveft", "waveft-db3", "waveft-direct", "vblora",
            "randlora", "randlora-sparse", "randlora-very-sparse", "c3a", "c3a-zero-start", "road", "road-2", "road-4",
            "gralora", "gralora-hybrid", "gralora-random-start", "ia3", "ia3-at-input", "beft")  # fmt: skip
_TRANSFORMS = ("miss", "miss-mini", "miss-bat", "miss-random-start", "vera", "vera-from-seed", "oft",
               "oft-cayley-shared", "boft")  # fmt: skip
COMPARED: Mapping[str, tuple[str, ...]] = {
    "bitsandbytes": (*_LORA, *_BIASES, "lora-own-bias", "lora-both-biases", *_VECTORS, *_TRANSFORMS, "shira"),
    "torchao": (*_LORA, *_BIASES, *_VECTORS, "unilora", "unilora-saved-indices", "loha", "lokr"),
    "hqq": (*_LORA, *_TRANSFORMS),
}
