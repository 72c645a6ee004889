"""Every kernel against its formula, on a device: its output and gradients, and the formula's in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import backends, loss, norm, rotary
from .cpu import products
from .cpu.attention import short_attention
from .cpu.native import library, rowwise, why_not
from .cuda import loss_trial
from .cuda.few_bits import Buffer, Kind, in_few_bits
from .cuda.loss_trial import Kernel
from .cuda.varlen import attend
from .gated import gated
from .lora_linear import add_low_rank, lora_linear
from .updates import joint
from .updates.row_columns import RowColumns, magnified
from .updates.wide import CARRY, Way, make_room

LIMITS = MappingProxyType({torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2})
"""How far a kernel may be from its formula, relative: sums in another order, rounded to the dtype."""
_SCALE, _EPS = 0.5, 1e-6
_WEIGHT_OI = torch.linspace(-1, 1, 48 * 64).view(48, 64).cos()
_FAULTS = (RuntimeError, OSError, ImportError, ValueError, TypeError, AssertionError, IndexError)

Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Check:
    """What became of a kernel's trial.

    Attributes:
        kernel: what it computes.
        state: "right", "wrong", or "off" where it is not used on this device.
        error: the largest relative difference from the formula, of output and gradients; None if it did not run.
        limit: what the difference may be.
        why: why it is off, or what went wrong.
    """

    kernel: str
    state: Literal["right", "wrong", "off"]
    error: float | None = None
    limit: float | None = None
    why: str = ""


@dataclass(frozen=True)
class _Kernel:
    name: str
    kernel: Run
    formula: Run
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float32
    off: str = ""


def self_test(device: torch.device) -> list[Check]:
    """Try every kernel on a device."""
    return [_check(kernel, device) for kernel in (*_everywhere(), *_rows(device), *_others(device))]


def _check(one: _Kernel, device: torch.device) -> Check:
    if one.off:
        return Check(one.name, "off", why=one.off)
    limit = LIMITS[one.dtype]
    try:
        error = _difference(one, device)
    except _FAULTS as fault:
        told = f"{type(fault).__name__}: {fault}".splitlines()[0][:100]
        return Check(one.name, "wrong", limit=limit, why=told)
    if error <= limit:
        return Check(one.name, "right", error, limit)
    return Check(one.name, "wrong", error, limit, "it is not its formula here")


def _difference(one: _Kernel, device: torch.device) -> float:
    random = torch.Generator().manual_seed(0)
    exact = [torch.randn(shape, generator=random).to(one.dtype).double() for shape in one.shapes]
    ours = [t.to(one.dtype).to(device) for t in exact]
    worst = 0.0
    for a, b in zip(_run(one.kernel, ours), _run(one.formula, exact), strict=True):
        difference = (a.cpu().double() - b).norm() / b.norm().clamp_min(1e-12)
        worst = max(worst, float(difference)) if bool(difference.isfinite()) else float("inf")
    return worst


def _run(run: Run, inputs: list[Tensor]) -> list[Tensor]:
    """The output and the gradient of every input."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = run(*leaves)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, weights)]


def _everywhere() -> Iterator[_Kernel]:
    """What serves on every device."""
    weight = _WEIGHT_OI
    words = torch.linspace(-1, 1, 300 * 64).view(300, 64).cos()
    targets = torch.arange(40).where(torch.arange(40) % 3 > 0, -100)

    on, low_rank = _on, _low_rank

    def two(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        layer = joint.Layer(on(x, weight), None, a, b, _SCALE)
        return torch.cat(joint.lora_linears(x, [layer, layer]), -1)

    def carried(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        own = nn.Parameter(on(x, weight).clone(), requires_grad=False)
        room = make_room([own], [len(a)], Way(CARRY, CARRY))
        return joint.lora_linears(x, [joint.Layer(own, None, a, b, _SCALE)], room)[0]

    def by_rows(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        rows = RowColumns(40, [(range(30), 5), (range(30, 40), 3)], x.device)
        return joint.lora_linears(x, [joint.Layer(on(x, weight), None, a, b, _SCALE, rows=rows)])[0]

    def of_rows(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([low_rank(x[:30], a[:5], b[:, :5]), low_rank(x[30:], a[5:], b[:, 5:])])

    def dora_by_rows(x: Tensor, a: Tensor, b: Tensor, n: Tensor) -> Tensor:
        return magnified(by_rows(x, a, b), [n[0], n[1]], RowColumns(40, [(range(30), 5), (range(30, 40), 3)], x.device))

    yield _Kernel("LoRA for each row of a batch", by_rows, of_rows, ((40, 64), (8, 64), (48, 8)))
    yield _Kernel("DoRA for each row of a batch", dora_by_rows,
                  lambda x, a, b, n: of_rows(x, a, b) * n.repeat_interleave(torch.tensor([30, 10]), 0),
                  ((40, 64), (8, 64), (48, 8), (2, 48)))  # fmt: skip
    yield _Kernel("LoRA in its frozen layer's product", carried, low_rank, ((40, 64), (8, 64), (48, 8)))
    yield _Kernel("LoRA with its frozen layer", lambda x, a, b: lora_linear(x, on(x, weight), None, a, b, _SCALE),
                  low_rank, ((40, 64), (8, 64), (48, 8)))  # fmt: skip
    yield _Kernel("LoRA added to a layer's output", lambda x, a, b: add_low_rank(F.linear(x, on(x, weight)), x, a, b,
                  _SCALE), low_rank, ((40, 64), (8, 64), (48, 8)))  # fmt: skip
    yield _Kernel("LoRA layers that read the same input", two,
                  lambda x, a, b: torch.cat([low_rank(x, a, b)] * 2, -1), ((40, 64), (8, 64), (48, 8)))  # fmt: skip
    yield _Kernel("loss without logits, in chunks",
                  lambda x: loss.linear_cross_entropy(x, on(x, words), on(x, targets), memory=4 * 300 * 11),
                  lambda x: F.cross_entropy(F.linear(x, on(x, words)), targets), ((40, 64),))  # fmt: skip


def _rows(device: torch.device) -> Iterator[_Kernel]:
    """The passes over rows, in C++ or by liger-kernel."""
    cpu = device.type == "cpu"
    off = dict.fromkeys(backends.OPERATIONS, why_not() if cpu else "for processors and NVIDIA and AMD GPUs")
    if device.type == "cuda":
        off = {name: backends.why_not(name, device, torch.float32) for name in backends.OPERATIONS}
    how = "by liger-kernel" if device.type == "cuda" else "in C++"
    angles = torch.linspace(0, 7, 2 * 5 * 16).view(2, 5, 16)
    if not cpu:  # liger-kernel reads half of them, which holds the other
        angles = angles[..., :8].repeat(1, 1, 2)
    targets = torch.arange(0, 180, 9)[:, None]

    def turned(turn: Callable[..., tuple[Tensor, Tensor]]) -> Run:
        def both(q: Tensor, k: Tensor) -> Tensor:
            cos, sin = (t.to(q.device, q.dtype) for t in (angles.cos(), angles.sin()))
            return torch.cat([t.flatten() for t in turn(q, k, cos, sin)])

        return both

    yield _Kernel(f"RMSNorm {how}", lambda x, w: norm.rms_norm(x, w, _EPS),
                  lambda x, w: w * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _EPS),
                  ((4, 7, 64), (64,)), off=off["norms"])  # fmt: skip
    yield _Kernel(f"gated product {how}", lambda g, u: gated(g, u, lambda y: y * 2),
                  lambda g, u: 2 * F.silu(g) * u, ((4, 7, 64), (4, 7, 64)), off=off["feed-forward"])  # fmt: skip
    yield _Kernel(f"rotary positions {how}", turned(rotary.rotate), turned(rotary.formula),
                  ((2, 3, 5, 16), (2, 1, 5, 16)), off=off["rotary positions"])  # fmt: skip
    yield _Kernel("cross-entropy in C++", lambda z: _through(z, targets, rowwise.losses),
                  lambda z: F.cross_entropy(z, targets[:, 0], reduction="sum"), ((20, 300),),
                  off=why_not() if cpu else "for processors")  # fmt: skip


def _others(device: torch.device) -> Iterator[_Kernel]:
    """What is for one kind of device, by other means."""
    cpu = device.type == "cpu"
    words = f"attention by blocks{' in C++' if cpu and library() is not None else ''}"
    for dtype in (torch.float32, torch.bfloat16):
        yield _Kernel(f"{words}, {str(dtype).removeprefix('torch.')}",
                      lambda q, k, v: short_attention(q, k, v, None, 0.25), _attention,
                      ((2, 4, 96, 16), (2, 2, 96, 16), (2, 2, 96, 16)), dtype,
                      off="" if cpu else "for processors")  # fmt: skip
    yield _Kernel("float32 products by oneDNN", lambda x, w: products.differentiable_linear(x, w, None), F.linear,
                  ((256, 160), (128, 160)),
                  off="" if cpu and products.ONEDNN else "for AMD processors with AVX-512")  # fmt: skip
    targets = torch.arange(0, 180, 9)[:, None]
    off = "for NVIDIA and AMD GPUs" if device.type != "cuda" else "" if loss.has_triton() else "Triton is not installed"
    how = {loss_trial.OURS: "in Triton", loss_trial.LIGERS: "by liger-kernel"}
    for name, load in loss_trial.candidates().items():
        yield _Kernel(f"cross-entropy {how[name]}", lambda z, load=load: _through(z, targets.to(z.device), load()[0]),
                      lambda z: F.cross_entropy(z, targets[:, 0], reduction="sum"), ((20, 300),), off=off)  # fmt: skip
    for dtype in (torch.float32, torch.float16):
        yield _Kernel(f"LoRA and its frozen layer in Triton, {str(dtype).removeprefix('torch.')}", _in_one_kernel,
                      _low_rank, ((40, 64), (8, 64), (48, 8)), dtype, off)  # fmt: skip
    off = "for NVIDIA and AMD GPUs" if device.type != "cuda" else ""
    off = off or ("" if find_spec("bitsandbytes") else "bitsandbytes is not installed")
    for name, kind in (("4", ("nf4", 0.0)), ("8", ("int8", 0.0))):
        yield _Kernel(f"LoRA with a frozen layer in {name} bits", *_in_few_bits(kind, device),
                      ((40, 64), (8, 64), (48, 8)), torch.float16, off)  # fmt: skip
    yield _Kernel("attention by rows' lengths", _by_lengths, _each_row, ((40, 4, 32), (40, 2, 32), (40, 2, 32)),
                  torch.float16, _why_not_by_lengths(device))  # fmt: skip


def _on(x: Tensor, t: Tensor) -> Tensor:
    return t.to(x.device, x.dtype if t.is_floating_point() else t.dtype)


def _low_rank(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, _on(x, _WEIGHT_OI)) + _SCALE * (x @ a.mT) @ b.mT


def _in_one_kernel(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    from .updates.epilogue import TILES

    weight, tiles = _on(x, _WEIGHT_OI), next(iter(TILES))
    room = make_room([nn.Parameter(weight, requires_grad=False)], [len(a)], Way(tiles, tiles))
    return joint.lora_linears(x, [joint.Layer(weight, None, a, b, _SCALE)], room)[0]


def _in_few_bits(kind: Kind, device: torch.device) -> tuple[Run, Run]:
    """The operation on a weight in few bits, and its formula with what that is in float64."""
    held = functools.lru_cache(1)(lambda: in_few_bits(_WEIGHT_OI.half().to(device), kind, Buffer()))

    def kernel(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return joint.lora_linears(x, [joint.Layer(held(), None, a, b, _SCALE)])[0]

    def formula(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        with held().read(torch.float32) as weight:
            product = (x + _rounding(x)) if kind[0] == "int8" else x
            return F.linear(product, weight.double().cpu()) + _SCALE * (x @ a.mT) @ b.mT

    return kernel, formula


def _rounding(x: Tensor) -> Tensor:
    """What rows gain as they are rounded to 8 bits, which is nothing to their gradients."""
    scale = x.detach().abs().amax(-1, keepdim=True) / 127
    return (x.detach() / scale).round() * scale - x.detach()


_STARTS = (0, 17, 20, 40)


def _why_not_by_lengths(device: torch.device) -> str:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return "for NVIDIA GPUs from Ampere on"
    return "" if find_spec("torch.nn.attention.varlen") else "this torch has none"


def _by_lengths(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v, torch.tensor(_STARTS, dtype=torch.int32, device=q.device), 32, 0.25, None)


def _each_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows = [slice(*ends) for ends in pairwise(_STARTS)]
    return torch.cat([_attention(*(t[row].transpose(0, 1)[None] for t in (q, k, v)))[0] for row in rows])


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    return ((0.25 * q @ k.mT).masked_fill(later, float("-inf")).softmax(-1) @ v).transpose(1, 2)


def _through(z: Tensor, targets: Tensor, kernel: Kernel) -> Tensor:
    run: Any = _Losses.apply
    out: Tensor = run(z, targets, kernel)
    return out


class _Losses(torch.autograd.Function):
    """A kernel that puts the gradient in the place of the logits."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, targets: Tensor, kernel: Kernel) -> Tensor:
        ctx.gradient = z.clone()
        return kernel(ctx.gradient, targets, 0.0, True).sum().to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient * g[0], None, None
