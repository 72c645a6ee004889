"""How much memory a training step takes, found without running it: shapes go through the model, numbers do not."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
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


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
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


def step_memory(
    build: Callable[[], nn.Module],
    inputs: Mapping[str, Tensor],
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor],
    *,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = torch.optim.AdamW,
) -> StepMemory:
    """Let the shapes of two training steps go through a model.

    Args:
        build: makes the model with its adapter, in training mode; called where tensors hold no data.
        inputs: a batch; only shapes and dtypes count.
        loss: a scalar from the model and the batch.

    Raises:
        RuntimeError: the model asks for a tensor's numbers on its way.
    """
    with FakeTensorMode(), torch.device(torch.accelerator.current_accelerator() or "cpu"):
        live = _Live()
        with live:
            model = build()
        batch = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in inputs.items()}
        parameters = list(model.parameters())
        trained = [p for p in parameters if p.requires_grad]
        live.peak = live.now
        with live:
            steps = optimizer(trained)
            for _ in range(2):  # the optimizer's state is there from the first step on
                loss(model, batch).backward()  # type: ignore[no-untyped-call]
                steps.step()
                steps.zero_grad()
        frozen = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Linear)}
        heads = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        shrinks = [w for key, w in frozen.items() if key not in heads and not w.requires_grad]
        return StepMemory(_bytes(parameters), _bytes(shrinks), _bytes(trained), live.peak)


def _bytes(tensors: list[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
