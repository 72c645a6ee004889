"""A base whose weights are in memory once, for any number of runs with module trees of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.frozen import Kept
from ..data.encoded_once import EncodedOnce
from ..loop.steps.random_states import drew, random_states


class SharedBase:
    """Gives each run a base of its own, with the parameters and buffers of the first.

    What loading draws at random (a classifier's fresh head) is drawn by every run for itself.

    Attributes:
        kept: what its frozen layers gave out, for runs that keep that.
        rows: what was encoded for it.
    """

    def __init__(self) -> None:
        self.first: nn.Module | None = None
        self.draws = False
        self.versions: dict[str, int] = {}
        self.kept = Kept()
        self.rows = EncodedOnce()

    def load(self, fresh: Callable[[], Any]) -> Any:
        """A base as `fresh` would load it now, frozen or not."""
        if self.first is None:
            before = random_states()
            self.first = fresh()
            self.draws = drew(before)
            out = sharing(self.first)
            self.versions = {name: tensor._version for name, tensor in _tensors(self.first)}
            return out
        if not self.draws:
            return sharing(self.first)
        out, own = fresh(), dict(_tensors(self.first))
        for name, parameter in list(out.named_parameters()):
            if name in own and torch.equal(parameter, own[name]):
                parent, _, leaf = name.rpartition(".")
                out.get_submodule(parent)._parameters[leaf] = own[name]
        return out

    def touched(self) -> list[str]:
        """Weights that someone has written into, or trains."""
        if self.first is None:
            return []
        return [n for n, t in _tensors(self.first) if t._version != self.versions.get(n, t._version) or t.requires_grad]


def sharing(module: nn.Module) -> Any:
    """A copy of a module tree with the same parameters and buffers."""
    return copy.deepcopy(module, {id(tensor): tensor for _, tensor in _tensors(module)})


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
