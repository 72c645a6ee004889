"""How much memory a training step takes, found without running it: shapes go through the model, numbers do not."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step.

    Attributes:
        weights: of the model with its adapter, as computed with.
        frozen_linear: the part of `weights` that quantised storage would shrink: frozen matrices of linear layers.
        trained: of the trained parameters.
        peak: all that is alive at once at the worst moment of two steps: weights, activations, gradients, optimizer.
    """

    weights: int
    frozen_linear: int
    trained: int
    peak: int

    @property
    def working(self) -> int:
        """What a step takes beyond the weights."""
        return self.peak - self.weights


class Numberless(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers for the numbers that tensors without data do not have."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:  # a mask is taken to hide something, a count to be one
            return False if args[0].dtype == torch.bool else 1 if not args[0].is_floating_point() else 1.0
        return func(*args, **(kwargs or {}))


class _Live(Numberless):
    """Counts the bytes of storages that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


class _Attention(torch.autograd.Function):
    """What attention that never holds its scores keeps and returns; without data torch would take the plain formula."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors[:3])


@contextmanager
def _fused_attention() -> Iterator[None]:
    """`_Attention` in the place of torch's, recomputation in the backward pass (where no mode holds) included."""
    plain: Any = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        run: Any = _Attention.apply if query.device.type == "meta" else partial(plain, *args, **kwargs)
        out: Tensor = run(query, key, value)
        return out

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def step_memory(
    build: Callable[[], nn.Module],
    inputs: Mapping[str, Tensor],
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor],
    *,
    moments: int = 2,
) -> StepMemory:
    """Let the shapes of two training steps go through a model.

    Args:
        build: makes the model with its adapter, in training mode; called where tensors hold no data.
        inputs: a batch; only shapes and dtypes count.
        loss: a scalar from the model and the batch.
        moments: numbers that the optimizer keeps for every trained one; AdamW keeps two.

    Raises:
        RuntimeError: the model asks for a tensor's numbers on its way.
    """
    with torch.device("meta"), _fused_attention():
        live = _Live()
        with live:
            model = build()
        batch = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in inputs.items()}
        parameters = list(model.parameters())
        trained = [p for p in parameters if p.requires_grad]
        live.peak = live.now
        with live:
            loss(model, batch).backward()  # type: ignore[no-untyped-call]
            state = [torch.empty_like(p) for p in trained for _ in range(moments)]
            model.zero_grad()
            loss(model, batch).backward()  # type: ignore[no-untyped-call]
            del state
        frozen = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Linear)}
        heads = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        shrinks = [w for key, w in frozen.items() if key not in heads and not w.requires_grad]
        return StepMemory(_bytes(parameters), _bytes(shrinks), _bytes(trained), live.peak)


def _bytes(tensors: list[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
