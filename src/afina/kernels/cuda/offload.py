"""What a step keeps for its backward pass, in the processor's pinned memory instead of the GPU's.

Large tensors that autograd saves are copied out on a stream of their own while the forward pass goes on, and copied
back, the next one ahead of time, while the backward pass works on the one before: two transfers at most are under way.
Parameters stay where they are, and a tensor that is saved twice is copied once.

Source: activation offloading as in torch.autograd.graph.save_on_cpu, with the copies beside the computation.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..swap import swap_forward

LEAST = 1 << 20
"""Bytes of the smallest tensor that is worth a copy."""


class Mover(Protocol):
    """Copies between a GPU and main memory.

    Attributes:
        kind: of tensors, which have no subclass of it.
    """

    kind: type[Tensor]

    def out(self, tensor: Tensor) -> Tensor:
        """Begin a copy into main memory; the tensor may be freed once it is done."""

    def back(self, held: Tensor, device: torch.device) -> Tensor:
        """Begin a copy to a device."""

    def wait(self) -> None:
        """Let the computation wait for the copies that began."""


class Streams:
    """Copies on a CUDA stream of their own, through pinned memory."""

    kind: type[Tensor] = Tensor

    def __init__(self, device: torch.device) -> None:
        gpu: Any = torch.cuda
        self.gpu, self.device, self.stream = gpu, device, gpu.Stream(device)

    def out(self, tensor: Tensor) -> Tensor:
        held = torch.empty_like(tensor, device="cpu", pin_memory=True)  # with its strides
        self.stream.wait_stream(self.gpu.current_stream(self.device))
        with self.gpu.stream(self.stream):
            held.copy_(tensor, non_blocking=True)
        tensor.record_stream(self.stream)
        return held

    def back(self, held: Tensor, device: torch.device) -> Tensor:
        with self.gpu.stream(self.stream):
            out = held.to(device, non_blocking=True)
        out.record_stream(self.gpu.current_stream(device))
        return out

    def wait(self) -> None:
        self.gpu.current_stream(self.device).wait_stream(self.stream)


class Kept:
    """The tensors of one forward pass, in the order in which they were saved."""

    def __init__(self, mover: Mover, parameters: frozenset[int]) -> None:
        self.mover, self.parameters = mover, parameters
        self.held: list[tuple[Tensor, torch.device]] = []
        self.places: dict[tuple[Any, int, torch.Size, tuple[int, ...]], int] = {}
        self.sources: list[Tensor] = []
        self.ready: dict[int, Tensor] = {}

    def pack(self, tensor: Tensor) -> Any:
        """A number in the place of a tensor that was copied out; else the tensor."""
        if not self._is_worth_it(tensor):
            return tensor
        at = tensor.untyped_storage()._cdata, tensor.storage_offset()
        key = at, tensor._version, tensor.shape, tensor.stride()
        if key not in self.places:
            self.places[key] = len(self.held)
            self.sources.append(tensor.detach())  # its memory is not given to another while keys are compared
            self.held.append((self.mover.out(tensor.detach()), tensor.device))
            if len(self.sources) > 2:  # two copies are under way at most
                self.mover.wait()
                self._forget(self.sources.pop(0))
            return len(self.held) - 1
        return self.places[key]

    def unpack(self, packed: Any) -> Tensor:
        """The tensor; the one that was saved before it is begun to be copied back."""
        if isinstance(packed, Tensor):
            return packed
        self.sources.clear()
        if packed not in self.ready:
            self.ready[packed] = self._back(packed)
        self.mover.wait()
        out = self.ready[packed]
        self.ready = {packed: out}
        if packed:
            self.ready[packed - 1] = self._back(packed - 1)
        return out

    def _back(self, place: int) -> Tensor:
        return self.mover.back(*self.held[place])

    def _forget(self, source: Tensor) -> None:
        own = source.untyped_storage()._cdata
        if any(other.untyped_storage()._cdata == own for other in self.sources):  # the same in another shape
            return
        for key in [k for k in self.places if k[0][0] == own]:
            del self.places[key]

    def _is_worth_it(self, tensor: Tensor) -> bool:
        return (
            type(tensor) is self.mover.kind
            and tensor.is_floating_point()
            and tensor.numel() * tensor.element_size() >= LEAST
            and tensor.untyped_storage()._cdata not in self.parameters
            and (tensor.is_contiguous() or (tensor.dim() == 4 and tensor.transpose(1, 2).is_contiguous()))
        )


def offload_layers(model: nn.Module, mover: Mover) -> int:
    """Let every decoder layer's saved tensors be copied out in training; returns how many layers there are."""
    get_base: Any = getattr(model, "get_base_model", None)
    base: Any = model if get_base is None else get_base()
    decoder: Any = getattr(base, "get_decoder", lambda: None)()
    layers: Any = getattr(decoder, "layers", ())
    own = frozenset(p.untyped_storage()._cdata for p in model.parameters())

    def forward(kind: type[nn.Module], self: Any, *args: Any, **kwargs: Any) -> Any:
        with _hooks(self, mover, own):
            return kind.forward(self, *args, **kwargs)

    for layer in layers:
        swap_forward(layer, forward)
    return len(layers)


def _hooks(layer: nn.Module, mover: Mover, own: frozenset[int]) -> AbstractContextManager[Any]:
    if not (layer.training and torch.is_grad_enabled()):
        return nullcontext()
    kept = Kept(mover, own)
    make: Callable[..., AbstractContextManager[Any]] = torch.autograd.graph.saved_tensors_hooks
    return make(kept.pack, kept.unpack)
