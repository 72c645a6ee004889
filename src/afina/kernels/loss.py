"""The next token's cross-entropy, where only supervised positions cost anything.

Most positions of a fine-tuning example carry no label (the prompt, padding). `linear_cross_entropy` takes hidden states
and the vocabulary projection: only supervised rows are projected, in chunks that follow a memory target, and the
gradient is computed chunk by chunk on the way, so that the logits are never held whole. (The idea of the fused head is
in Wijmans et al. 2024, arXiv 2411.09009, and Hsu et al. 2024, arXiv 2410.10989; the arithmetic is ours.)
`supervised_loss` serves models that have computed all logits already.

Shapes: N positions, D width, V vocabulary.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunks import rows_at_a_time
from .cpu import products
from .cpu.native import rowwise as native
from .cuda.loss_trial import Kernel, chosen
from .listening import tell

CACHED = 2**19
"""Logits that are worked on at a time on a processor."""

_Loss = TypeVar("_Loss", bound=Callable[..., Any])


def _not_compiled(loss: _Loss) -> _Loss:
    """How many positions are supervised is known from their numbers only: the compiler breaks off once, here."""
    compiler: Any = torch.compiler
    out: _Loss = compiler.disable(loss)
    return out


@_not_compiled
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, ignore_index: int = -100,
    label_smoothing: float = 0.0, softcap: float | None = None, count: Tensor | float | None = None,
    memory: int | None = None, room: int | None = None,
) -> Tensor:  # fmt: skip
    """Cross-entropy of softmax(hidden weightᵀ + bias) against targets.

    Args:
        hidden: (N, D). weight: (V, D). targets: (N,). bias: (V,), frozen.
        label_smoothing: share of the target that is spread over the whole vocabulary.
        softcap: logits are softcap · tanh(logits / softcap).
        count: what the sum is divided by; the number of targets if None.
        memory: bytes for a chunk's logits in float32; by the device if None (`chunk_rows`).
        room: work on exactly so many positions, of which those past the supervised ones count nothing, so that the host
            need not know how many there are; no fewer than are supervised, and `weight` is frozen.
    """
    how = _How(ignore_index, label_smoothing, softcap, count, memory, room)
    run: Any = _LinearCrossEntropy.apply
    out: Tensor = run(hidden, weight, bias, targets, how, False)[0]
    return out


@_not_compiled
def logits_and_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, ignore_index: int = -100,
    count: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`linear_cross_entropy` together with the logits (N, V) of every position, which it then reads.

    The loss sends its gradient to `hidden` past the logits, so that no gradient of their size is ever held.

    Returns:
        (loss, logits); both can be differentiated.
    """
    run: Any = _LinearCrossEntropy.apply
    loss, logits = run(hidden, weight, bias, targets, _How(ignore_index, divisor=count), True)
    return loss, logits


class _How(NamedTuple):
    ignore_index: int
    smoothing: float = 0.0
    softcap: float | None = None
    divisor: Tensor | float | None = None
    memory: int | None = None
    room: int | None = None


def _supervised(targets: Tensor, how: _How) -> tuple[Tensor, Tensor | None]:
    """The supervised positions; with room to spare, the first ones again, and which of all count, (N,)."""
    there = targets != how.ignore_index
    if how.room is None:
        return there.nonzero().squeeze(1), None
    static: Any = torch.nonzero_static
    rows: Tensor = static(there, size=how.room, fill_value=0).squeeze(1)
    return rows, torch.arange(how.room, device=targets.device) < there.sum()


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, how: _How, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        rows, counted = _supervised(targets, how)
        h_ND, y_N1 = hidden[rows], targets[rows].unsqueeze(1)
        if counted is not None:
            y_N1 = y_N1.clamp_min(0)
        wants_h, wants_w = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        dh_ND = torch.empty_like(h_ND) if wants_h else None
        dw_VD = torch.zeros_like(weight) if wants_w else None
        logits = products.linear(hidden, weight, bias) if keep else None
        total = torch.zeros((), dtype=torch.promote_types(torch.float32, hidden.dtype), device=hidden.device)
        step = rows_at_a_time(len(rows), weight, how.memory)
        for i in range(0, len(rows), step):
            part = slice(i, i + step)
            z_NV = products.linear(h_ND[part], weight, bias) if logits is None else logits[rows[part]]
            losses_N = _losses(z_NV, y_N1[part], how, wants_h or wants_w)
            if counted is None:
                tell(rows[part], losses_N, len(hidden))
            else:
                losses_N = losses_N * counted[part]
            total = total + losses_N.sum().to(total.dtype)
            if dh_ND is not None:
                dh_ND[part] = products.mm(z_NV, weight)
            if dw_VD is not None:
                _add_product(dw_VD, z_NV.mT, h_ND[part])
        if counted is not None and dh_ND is not None:
            dh_ND.mul_(counted.unsqueeze(1))
        divisor = (len(rows) if counted is None else counted.sum()) if how.divisor is None else how.divisor
        ctx.save_for_backward(rows, dh_ND, dw_VD, weight if keep else None, hidden if keep and wants_w else None)
        ctx.divisor, ctx.shape = divisor, hidden.shape
        ctx.set_materialize_grads(False)
        return total / divisor, logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor | None, g_NV: Tensor | None) -> Any:
        rows, dh_ND, dw_VD, weight, hidden = ctx.saved_tensors
        dh = dw = None
        if dh_ND is not None:
            dh = None if g_NV is None else products.mm(g_NV, weight.to(g_NV.dtype)).to(dh_ND.dtype)
            dh = dh_ND.new_zeros(ctx.shape) if dh is None else dh
            if g is not None:
                dh.index_add_(0, rows, dh_ND * (g / ctx.divisor).to(dh_ND.dtype))
        if dw_VD is not None:
            dw = torch.zeros_like(dw_VD) if g is None else dw_VD * (g / ctx.divisor).to(dw_VD.dtype)
            dw = dw if g_NV is None else _add_product(dw, g_NV.mT, hidden)
        return dh, dw, None, None, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total + a b, in place. Under autocast logits are in 16 bits and the weight is not."""
    return total.addmm_(a, b) if a.dtype == total.dtype else total.add_(products.mm(a, b.to(a.dtype)))


def _losses(z_NV: Tensor, y_N1: Tensor, how: _How, backward: bool) -> Tensor:
    """The losses, (N,); if `backward`, the gradient of their sum takes the place of the logits in `z_NV`.

    In blocks of rows that stay in the processor's cache from the softmax to the gradient, or by one kernel where there
    is one.
    """
    kernel = _kernel(z_NV) if how.softcap is None else None
    if kernel is not None:
        return kernel(z_NV, y_N1, how.smoothing, backward)
    step = max(1, (CACHED if z_NV.device.type == "cpu" else z_NV.numel()) // z_NV.shape[1])
    blocks = range(0, max(1, len(z_NV)), step)
    return torch.cat([_block(z_NV[i : i + step], y_N1[i : i + step], how, backward) for i in blocks])


def _block(z_NV: Tensor, y_N1: Tensor, how: _How, backward: bool) -> Tensor:
    place, slope, smoothing, softcap = z_NV, None, how.smoothing, how.softcap
    if softcap is not None:
        z_NV = torch.tanh(z_NV / softcap)
        slope = 1 - z_NV.square() if backward else None
        z_NV = z_NV * softcap
    wide = torch.promote_types(torch.float32, z_NV.dtype)
    p_NV = torch.softmax(z_NV, -1, dtype=wide)
    # The largest share is at least 1 / V, so its logarithm is exact enough to stand for the normaliser.
    normaliser = z_NV.amax(-1, keepdim=True).to(wide) - p_NV.amax(-1, keepdim=True).log()
    loss = normaliser - (1 - smoothing) * z_NV.gather(1, y_N1).to(wide)
    if smoothing:
        loss = loss - smoothing * z_NV.mean(-1, keepdim=True, dtype=wide)
    if backward:
        p_NV.scatter_add_(1, y_N1, p_NV.new_full(y_N1.shape, smoothing - 1))
        if smoothing:
            p_NV.sub_(smoothing / z_NV.shape[1])
        if slope is not None:
            p_NV.mul_(slope)
        place.copy_(p_NV)
    return loss.squeeze(1)


def _kernel(z_NV: Tensor) -> Kernel | None:
    """The kernel in C++ on a processor, Triton's on a GPU, where they serve.

    Triton's and torch's operations agree to rounding, not to the bit, and which of them is used hangs on a timing,
    which another process, also one that resumes a run, may see otherwise. Who needs the same bits again asks torch for
    deterministic algorithms; then nothing is timed and torch's operations are used.
    """
    if not is_on_gpu(z_NV):
        return native.losses if native.fits(z_NV) else None
    if z_NV.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return None
    if torch.compiler.is_compiling() or torch.are_deterministic_algorithms_enabled() or not z_NV.is_contiguous():
        return None
    return chosen(z_NV.device, z_NV.dtype, z_NV.shape[1], _in_torch) if has_triton() else None


def is_on_gpu(x: Tensor) -> bool:
    """Whether the kernel could run on this tensor's device."""
    return x.device.type == "cuda"


def has_triton() -> bool:
    """Whether Triton is installed; whether it runs is found out by trying."""
    return importlib.util.find_spec("triton") is not None


def _in_torch(z_NV: Tensor, y_N1: Tensor, smoothing: float, backward: bool) -> Tensor:
    return _block(z_NV, y_N1, _How(-100, smoothing), backward)


@_not_compiled
def supervised_loss(
    logits: Tensor, labels: Tensor | None, vocab_size: int | None = None, num_items_in_batch: Any = None,
    ignore_index: int = -100, shift_labels: Tensor | None = None, **kwargs: Any,
) -> Tensor:  # fmt: skip
    """transformers' loss of causal language models, computed on supervised positions only.

    Args:
        logits: (batch, tokens, V). labels: (batch, tokens), shifted here; or `shift_labels`, shifted already.
    """
    if shift_labels is None:
        assert labels is not None
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.reshape(-1).to(logits.device)
    run: Any = _SupervisedLoss.apply
    out: Tensor = run(logits.reshape(-1, logits.shape[-1]), targets, ignore_index, num_items_in_batch)
    return out


class _SupervisedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, ignore_index: int, count: Any) -> Tensor:
        rows = (targets != ignore_index).nonzero().squeeze(1)
        z_NV, wanted = logits[rows], ctx.needs_input_grad[0]
        loss = _losses(z_NV, targets[rows].unsqueeze(1), _How(ignore_index), wanted)
        tell(rows, loss, len(logits))
        ctx.divisor = len(rows) if count is None else count
        ctx.save_for_backward(z_NV if wanted else None, rows)
        ctx.shape = logits.shape
        mean: Tensor = loss.sum().to(torch.promote_types(torch.float32, logits.dtype)) / ctx.divisor
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        dz_NV, rows = ctx.saved_tensors
        out = dz_NV.new_zeros(ctx.shape)
        out[rows] = dz_NV * (g / ctx.divisor).to(dz_NV.dtype)
        return out, None, None, None
