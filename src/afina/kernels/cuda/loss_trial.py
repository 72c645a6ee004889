"""Which kernel computes the loss of logits on a GPU: ours, liger-kernel's, or torch's operations; by a trial, once.

A kernel serves where it gives what torch's operations give and takes less time; of several the fastest. The outcome is
kept (`trial.kept`), but for kernels that do not run, which may be tried again.

Shapes: N positions, V vocabulary.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...errors import AfinaWarning
from ..chunks import chunk_rows
from . import rowwise
from .clock import milliseconds
from .trial import FAULTS, kept

Kernel = Callable[[Tensor, Tensor, float, bool], Tensor]
"""Of logits (N, V), targets (N, 1), label smoothing and whether the gradient takes the logits' place: losses, (N,)."""
OURS, LIGERS = "the kernel in Triton", "liger-kernel's"


def _ours() -> tuple[Kernel, tuple[type[Exception], ...]]:
    from .loss import FAULTS, losses

    return losses, FAULTS


def _ligers() -> tuple[Kernel, tuple[type[Exception], ...]]:
    from .liger_loss import losses

    return losses, _ours()[1]


def candidates() -> Mapping[str, Callable[[], tuple[Kernel, tuple[type[Exception], ...]]]]:
    """By name: what imports a kernel, and what it raises where it does not run."""
    return {OURS: _ours, LIGERS: _ligers} if rowwise.is_installed() else {OURS: _ours}


@functools.lru_cache(maxsize=64)
def chosen(device: torch.device, dtype: torch.dtype, width: int, formula: Kernel) -> Kernel | None:
    """The kernel for logits of a kind; None for torch's operations, with a warning that says why.

    Args:
        width: V. formula: the loss in torch's operations.
    """
    there, why = {}, ""
    for name, load in candidates().items():
        try:
            there[name] = load()
        except (ImportError, OSError, RuntimeError) as error:
            why = f"{name} cannot be imported ({_first_line(error)})"
    if there:
        question = {"operation": "loss", "dtype": str(dtype), "width": str(width), "kernels": ", ".join(there)}
        try:
            why = kept(question, device, lambda: _fastest(there, device, dtype, width, formula))
        except _DoesNotRunError as error:
            why = str(error)
        except FAULTS as error:
            why = _first_line(error)
    if why in there:
        return there[why][0]
    warnings.warn(f"the loss on {device} in {dtype} is computed by torch: {why}", AfinaWarning, stacklevel=2)
    return None


class _DoesNotRunError(Exception):
    """No kernel runs here, or not now."""


def _fastest(
    there: Mapping[str, tuple[Kernel, tuple[type[Exception], ...]]], device: torch.device, dtype: torch.dtype,
    width: int, formula: Kernel,
) -> str:  # fmt: skip
    """The name of the fastest kernel that is right; else why none serves."""
    right, why, ran = [], "", False
    for name, (kernel, faults) in there.items():
        try:
            fault = _fault(kernel, device, dtype, width, formula)
            ran = True
        except faults as error:
            fault = f"does not run here ({_first_line(error)})"
        right += [] if fault else [name]
        why = why or (f"{name} {fault}" if fault else "")
    if not right and not ran:
        raise _DoesNotRunError(why)
    if not right:
        return why
    z_NV, y_N1 = _sample(chunk_rows(width, device.type, None), width, device, dtype)
    runs = [formula, *(there[name][0] for name in right)]
    slow, *times = milliseconds([lambda run=run: run(z_NV, y_N1, 0.0, True) for run in runs], device)  # type: ignore[misc]
    fast = min(times)
    best = right[times.index(fast)]
    return best if fast < slow else f"{best} is no faster: {fast:.3g} ms for torch's {slow:.3g} ms"


def _first_line(error: Exception) -> str:
    # Triton's compiler puts the source before what is wrong with it.
    told = getattr(error, "error_message", None) or error
    return f"{type(error).__name__}: {told}".splitlines()[0][:150]


def _fault(kernel: Kernel, device: torch.device, dtype: torch.dtype, width: int, formula: Kernel) -> str:
    """What is wrong with a kernel's results.

    Right: losses to 1e-5 of their sum; gradients to 1e-5 and one rounding of `dtype`, relative, and 3e-6, absolute.
    """
    for smoothing, backward in ((0.0, False), (0.1, True)):
        z_NV, y_N1 = _sample(5, width, device, dtype)
        true_NV = z_NV.clone()
        true, got = formula(true_NV, y_N1, smoothing, backward).sum(), kernel(z_NV, y_N1, smoothing, backward).sum()
        if not torch.allclose(got, true, rtol=1e-5):
            return f"gives a wrong loss: {float(got):.7g} instead of {float(true):.7g}"
        if not torch.allclose(z_NV.float(), true_NV.float(), rtol=max(torch.finfo(dtype).eps, 1e-5), atol=3e-6):
            return f"gives a gradient that is wrong by {float((z_NV.float() - true_NV.float()).abs().max()):.3g}"
    return ""


def _sample(rows: int, width: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    # A generator of its own, so that the numbers of the run that follows stay the same.
    random = torch.Generator(device).manual_seed(0)
    z_NV = torch.randn(rows, width, generator=random, device=device).mul_(4).to(dtype)
    return z_NV, torch.randint(width, (rows, 1), generator=random, device=device)
