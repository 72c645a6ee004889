"""What tensors without data need around them, so that code that was written for numbers runs on them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from ....kernels import loss
from ....kernels.chunks import MOST, chunk_rows

_ENOUGH = 2**40


@functools.cache
def fakes() -> Any:
    """One for all rehearsals: what libraries keep between them is of the same kind then."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    class Fakes(FakeTensorMode):  # type: ignore[no-untyped-call]
        def __deepcopy__(self, memo: Any) -> Any:
            return self  # tensors that are copied stay of this one

    return Fakes()


class MainMemory:
    """Where activations of a rehearsal wait (`training.offload`), which is not the device's.

    Attributes:
        taken: bytes of pinned memory for all that came, in powers of two, as torch takes them.
    """

    kind: type[Tensor] = FakeTensor

    def __init__(self) -> None:
        self.taken = 0

    def out(self, tensor: Tensor) -> Tensor:
        self.taken += 1 << (tensor.numel() * tensor.element_size() - 1).bit_length()
        with _disable_current_modes():
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

    def back(self, held: Tensor, device: torch.device) -> Tensor:
        return torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device=device)

    def wait(self) -> None:
        """Copies take no time here."""


@contextmanager
def chunks(gpu: bool) -> Iterator[None]:
    """On a GPU the loss takes more rows of logits at a time; as many as with enough free memory."""
    of_loss: Any = loss
    own = of_loss.rows_at_a_time

    def rows(needed: int, weight: Tensor, memory: int | None) -> int:
        return min(max(1, needed), MOST, chunk_rows(weight.shape[0], "cuda", _ENOUGH))

    if gpu:
        of_loss.rows_at_a_time = rows
    try:
        yield
    finally:
        of_loss.rows_at_a_time = own


@contextmanager
def unwatched() -> Iterator[None]:
    """Modules change their dtype by new parameters; torch would swap what is looked at by the trace. What a model
    checks of its tensors' numbers holds. Remarks of torch on tensors without data stay unsaid."""
    of_torch: Any = torch
    own, checks, made = nn.Module._apply, of_torch._check_tensor_all_with, torch.tensor

    def of_numbers(data: Any, *how: Any, **more: Any) -> Tensor:
        """A tensor of a list of tensors' numbers, which torch would read where there are none."""
        listed = isinstance(data, (list, tuple)) and any(isinstance(one, Tensor) for one in data)
        return made([one.item() if isinstance(one, Tensor) else one for one in data] if listed else data, *how, **more)

    nn.Module._apply = _apply  # type: ignore[method-assign]
    of_torch._check_tensor_all_with, of_torch.tensor = lambda *_: None, of_numbers
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing_enable. is deprecated")
            yield
    finally:
        nn.Module._apply = own  # type: ignore[method-assign]
        of_torch._check_tensor_all_with, of_torch.tensor = checks, made


def _apply(module: nn.Module, change: Any, recurse: bool = True) -> nn.Module:
    for child in module.children() if recurse else ():
        _apply(child, change)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                new = change(parameter)
            if new.dtype != parameter.dtype:
                module._parameters[name] = nn.Parameter(new, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = change(buffer)
    return module
