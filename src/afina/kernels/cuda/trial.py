"""Which of the kernels for rows serve a GPU: each is tried once against torch's operations, and the outcome kept.

A kernel serves where its output and gradients are no further from the exact ones than torch's are, and where forward
and backward together take less time. The outcome is kept in the cache by device, dtype and the versions of what takes
part, so that later processes, also those that resume a run, choose the same without measuring. What could not be tried
is not kept.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...cache import cache_dir, make_once
from ...errors import AfinaError
from ...version import __version__
from . import rowwise
from .clock import milliseconds

ROWS, WIDTH, HEADS, HEAD = 4096, 2048, 16, 64
"""What is timed: tokens and width of a small language model's layer."""
_EPS = 1e-6
_FURTHER, _ROUNDING = 1.5, 1e-6
"""How much further from the exact result than torch's a kernel may be: times, and more."""
FAULTS = (RuntimeError, OSError, ImportError, ValueError, TypeError, AssertionError, AttributeError)
"""What a trial raises where something cannot run."""
_FILE = "outcome.json"

Run = Callable[..., Sequence[Tensor]]
"""Of inputs and the output's gradient: the output and the inputs' gradients."""


def why_not(operation: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why a kernel does not serve; empty where it does."""
    if not rowwise.is_installed():
        return "liger-kernel is not installed (pip install 'afina[gpu]')"
    index = device.index if device.index is not None else torch.cuda.current_device()
    return _known(operation, torch.device(device.type, index), dtype)


@functools.lru_cache(maxsize=256)
def _known(operation: str, device: torch.device, dtype: torch.dtype) -> str:
    try:
        return kept({"operation": operation, "dtype": str(dtype)}, device, lambda: tried(operation, device, dtype))
    except FAULTS as error:
        return f"it does not run here ({type(error).__name__}: {str(error).strip()[:100]})".replace("\n", " ")


def kept(question: Mapping[str, str], device: torch.device, find: Callable[[], str]) -> str:
    """The outcome of a trial: what was kept of it, by the question, the device and the versions, or what `find` says.

    Raises:
        what `find` raises, of which nothing is kept
    """
    key = {**question, **_where(device)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    return remembered(cache_dir() / "trials" / digest, key, find)


def remembered(folder: Path, key: dict[str, str], find: Callable[[], str]) -> str:
    """What `find` said when it was asked before, or says now. Where nothing can be written it is asked every time."""
    found: list[str] = []

    def make(work: Path) -> None:
        found.append(find())
        (work / _FILE).write_text(json.dumps({**key, "outcome": found[0]}, indent=1) + "\n", encoding="utf-8")

    try:
        make_once(folder, make)
        return str(json.loads((folder / _FILE).read_text(encoding="utf-8"))["outcome"])
    except (AfinaError, PermissionError):
        return found[0] if found else find()


def _where(device: torch.device) -> dict[str, str]:
    gpu: Any = torch.cuda
    versions = {name: _version(name) for name in ("torch", "triton", "liger-kernel", "bitsandbytes")}
    return {"device": gpu.get_device_name(device), "capability": str(gpu.get_device_capability(device)),
            "afina": __version__, **versions}  # fmt: skip


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def tried(operation: str, device: torch.device, dtype: torch.dtype) -> str:
    """The trial itself. Raises what the kernel raises."""
    kernel, plain, shapes = _CASES[operation]
    random = torch.Generator(device).manual_seed(0)
    small = [torch.randn(17, *shape[1:], generator=random, device=device).to(dtype) for shape in shapes]
    exact = plain(*[t.double() for t in small])
    for ours, torchs, true in zip(kernel(*[t.clone() for t in small]), plain(*small), exact, strict=True):
        if not no_further(ours, torchs, true):
            return (f"it is not its formula here: off by {_error(ours, true):.2g}, torch's operations by "
                    f"{_error(torchs, true):.2g}")  # fmt: skip
    inputs = [torch.randn(shape, generator=random, device=device).to(dtype) for shape in shapes]
    fast, slow = milliseconds([lambda: kernel(*inputs), lambda: plain(*inputs)], device)
    return "" if fast < slow else f"it is no faster here: {fast:.3g} ms for torch's {slow:.3g} ms"


def no_further(ours: Tensor, torchs: Tensor, exact: Tensor) -> bool:
    """Whether one result is about as near to the exact one as another."""
    return _error(ours, exact) <= _FURTHER * _error(torchs, exact) + _ROUNDING


def _error(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true).norm() / true.norm().clamp_min(1e-12))


def _norm(x: Tensor, g: Tensor) -> Sequence[Tensor]:
    weight = torch.linspace(-1, 1, x.shape[-1], device=x.device, dtype=x.dtype)
    out, kept = rowwise.rms_norm(x, weight, _EPS)
    dx, dw = rowwise.rms_norm_backward(g, x, weight, kept, True)
    assert dw is not None
    return out, dx, dw


def _norm_of_torch(x: Tensor, g: Tensor) -> Sequence[Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    weight = torch.linspace(-1, 1, x.shape[-1], device=x.device, dtype=x.dtype).requires_grad_()

    def formula(x: Tensor) -> Tensor:
        y = x.to(wide)
        return weight * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + _EPS)).to(x.dtype)

    return _differentiated(formula, [x], g, [weight])


def _gated(gate: Tensor, up: Tensor, g: Tensor) -> Sequence[Tensor]:
    return rowwise.gated(gate, up), *rowwise.gated_backward(g, gate, up)


def _gated_of_torch(gate: Tensor, up: Tensor, g: Tensor) -> Sequence[Tensor]:
    return _differentiated(lambda a, b: F.silu(a) * b, [gate, up], g)


def _turned(q: Tensor, g: Tensor) -> Sequence[Tensor]:
    (q, g), (cos, sin) = (t[None].transpose(1, 2) for t in (q, g)), _angles(q)
    k, g_k = q[:, : HEADS // 4], g[:, : HEADS // 4]
    return *rowwise.turn(q, k, cos, sin), *rowwise.turn(g, g_k, cos, sin, back=True)


def _turned_of_torch(q: Tensor, g: Tensor) -> Sequence[Tensor]:
    (q, g), (cos, sin) = (t[None].transpose(1, 2) for t in (q, g)), _angles(q)

    def formula(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]

    q_out, dq = _differentiated(formula, [q], g)
    k_out, dk = _differentiated(formula, [q[:, : HEADS // 4]], g[:, : HEADS // 4])
    return q_out, k_out, dq, dk


def _angles(q: Tensor) -> tuple[Tensor, Tensor]:
    half = torch.outer(torch.arange(q.shape[0], device=q.device), 1e4 ** -torch.linspace(0, 1, HEAD // 2).to(q.device))
    angles = torch.cat((half, half), -1)[None]
    return angles.cos().to(q.dtype), angles.sin().to(q.dtype)


def _differentiated(
    formula: Callable[..., Tensor], inputs: Sequence[Tensor], g: Tensor, more: Sequence[Tensor] = ()
) -> Sequence[Tensor]:
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in inputs]
        out = formula(*leaves)
        return out.detach(), *torch.autograd.grad(out, [*leaves, *more], g)


_CASES: dict[str, tuple[Run, Run, tuple[tuple[int, ...], ...]]] = {
    "norms": (_norm, _norm_of_torch, ((ROWS, WIDTH),) * 2),
    "feed-forward": (_gated, _gated_of_torch, ((ROWS, 4 * WIDTH),) * 3),
    "rotary positions": (_turned, _turned_of_torch, ((ROWS, HEADS, HEAD),) * 2),
}
"""By operation: the kernel, torch's operations, and shapes, whose first number is that of rows."""
