"""Low-rank updates of frozen layers that read the same input: added to their products, carried by them, or both in one
kernel (`epilogue`).

    added    y_i = x W_iᵀ + (x A_iᵀ) (s_i B_i)ᵀ          dx = Σ g_i W_i + u A,   u = [g_1 s_1 B_1 | g_2 s_2 B_2 | …]
    carried  y_i = [x | x Aᵀ] [W_i | 0 s_i B_i 0]ᵀ       dx = [g_1 | g_2 | … | u] [W_1 ; W_2 ; … ; A]

What is added reads and writes the whole output once more; what is carried copies the product's input instead, which is
less where that is the narrower side. To be carried, the weights lie in one buffer with room for columns and rows of
the updates, and the layers' parameters are views of it, so that nothing is stored twice. s B and A are written into
the room before each product:

    W_1  s B_1  0           columns: I inputs, then S
    W_2  0      s B_2       rows: O_1, O_2, … outputs, then S
    A    (not read)

Nothing but the parameters' storage is held: a parameter that was moved, copied or replaced lies elsewhere, and its
update is added.

Shapes: N tokens, I inputs, O outputs of a layer, R rank of a layer, S sum of the ranks, to a multiple of 8.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cuda.few_bits import FewBits

Weight = Tensor | FewBits
"""(O, I); one in few bits is read into a buffer that all share, one after the other."""
ALIGNED = 8
"""What a row of the buffer is a multiple of, in numbers of 16 bits, so that matrix units read it as it lies."""
LOCK = threading.RLock()
"""Held from writing into a room to the start of the product that reads it."""


ADD, CARRY = "added", "carried"


class Way(NamedTuple):
    """How updates reach the outputs, and how their part reaches the input's gradient: ADD, CARRY, or the tiles of
    `epilogue.TILES` in which one kernel makes both."""

    forward: str = ADD
    backward: str = ADD

    @property
    def moves(self) -> bool:
        """Whether it takes a buffer with room."""
        return CARRY in self

    @property
    def without_room(self) -> Way:
        """What is left where there is none."""
        return Way(*(ADD if how == CARRY else how for how in self))


ADDED = Way()


class Room(NamedTuple):
    """What the buffer of some layers is laid out for."""

    outputs: tuple[int, ...]
    inputs: int
    ranks: tuple[int, ...]
    way: Way

    @property
    def spare(self) -> int:
        """S."""
        return -(-sum(self.ranks) // ALIGNED) * ALIGNED

    @property
    def shape(self) -> tuple[int, int]:
        """Of the buffer."""
        return sum(self.outputs) + self.spare, self.inputs + self.spare

    def holds(self, weights: Sequence[Tensor]) -> bool:
        """Whether the weights lie in such a buffer."""
        storage, (rows, columns) = weights[0].untyped_storage(), self.shape
        places = zip(weights, _begins(self.outputs), self.outputs, strict=True)
        return storage.nbytes() == rows * columns * weights[0].itemsize and all(
            w.untyped_storage().data_ptr() == storage.data_ptr()
            and w.shape == (out, self.inputs)
            and w.stride() == (columns, 1)
            and w.storage_offset() == begin * columns
            for w, begin, out in places
        )

    def buffer(self, weight: Tensor) -> Tensor:
        """All of it, (ΣO + S, I + S), of one of the weights in it."""
        # Not `detach`: changes of the room would count as changes of the weights, which others keep for their backward
        # pass.
        return weight.data.as_strided(self.shape, (self.shape[1], 1), 0)


def _begins(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:i]) for i in range(len(sizes))]


@torch.no_grad()
def make_room(weights: Sequence[nn.Parameter], ranks: Sequence[int], way: Way) -> Room:
    """Move frozen weights (O, I) into one buffer with room for updates of these ranks, if their products carry them."""
    outputs = tuple(w.shape[0] for w in weights)
    room = Room(outputs, weights[0].shape[1], tuple(ranks), way)
    if not way.moves:
        return room
    buffer = weights[0].data.new_zeros(room.shape)
    for weight, begin, out in zip(weights, _begins(outputs), outputs, strict=True):
        weight.data = buffer[begin : begin + out, : room.inputs].copy_(weight.data)
    return room


def saves_apart(module: nn.Module) -> None:
    """Let a layer's `state_dict` hold its weight by itself: who writes files takes tensors of one storage for one."""
    if _by_itself not in module._state_dict_hooks.values():
        hold: Any = module._register_state_dict_hook
        hold(_by_itself)


def _by_itself(module: nn.Module, state: dict[str, Tensor], prefix: str, _: object) -> None:
    if f"{prefix}weight" in state:
        state[f"{prefix}weight"] = state[f"{prefix}weight"].contiguous()


def layer_outputs(
    x_NI: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None], t_NS: Tensor, b_OR: Sequence[Tensor],
    room: Room | None = None,
) -> list[Tensor]:  # fmt: skip
    """The outputs.

    Args:
        t_NS: x Aᵀ of all layers, side by side.
        b_OR: times the updates' factors.
        room: what the weights lie in, and how the updates reach the outputs; they are added without it.
    """
    how = ADD if room is None else room.way.forward
    if room is None or how != CARRY:
        parts, out = torch.split(t_NS, [b.shape[1] for b in b_OR], 1), []
        made: dict[Any, Any] = {}
        for weight, bias, b, t_NR in zip(weights, biases, b_OR, parts, strict=True):
            if how != ADD and isinstance(weight, Tensor):
                out.append(_epilogue(x_NI, weight.mT, t_NR, b.mT, bias, how))
                continue
            y = F.linear(x_NI, weight, bias) if isinstance(weight, Tensor) else weight.product(x_NI, bias, made)
            out.append(y.addmm_(t_NR, b.mT))
        return out
    both = torch.cat([x_NI, t_NS, *_padding(room, t_NS)], 1)
    with LOCK:
        buffer, out = room.buffer(_dense(weights)[0]), []
        for b, bias, row, column in zip(b_OR, biases, _begins(room.outputs), _begins(room.ranks), strict=True):
            wide = buffer[row : row + len(b)]
            wide[:, room.inputs + column :][:, : b.shape[1]].copy_(b)
            out.append(F.linear(both, wide, bias))
    return out


def input_gradient(
    g_NO: Sequence[Tensor], u_NS: Tensor, weights: Sequence[Weight], a_SI: Tensor, room: Room | None = None
) -> Tensor:
    """(N, I).

    Args:
        u_NS: the outputs' gradients times the b of `layer_outputs`, side by side.
        room: what the weights lay in as the outputs were made.
    """
    how = ADD if room is None else room.way.backward
    if room is not None and how == CARRY and room.holds(_dense(weights)):
        both = torch.cat([*g_NO, u_NS, *_padding(room, u_NS)], 1)
        with LOCK:
            buffer = room.buffer(_dense(weights)[0])[:, : room.inputs]
            buffer[sum(room.outputs) :][: len(a_SI)].copy_(a_SI)
            return both @ buffer
    if how in (ADD, CARRY):
        dx, first = u_NS @ a_SI, 0
    else:
        with read(weights[0], u_NS.dtype) as weight:
            dx, first = _epilogue(g_NO[0], weight, u_NS, a_SI, None, how), 1
    for g, held in zip(g_NO[first:], weights[first:], strict=True):
        with read(held, g.dtype) as weight:
            dx.addmm_(g, weight)
    return dx


def _epilogue(x: Tensor, weight: Tensor, t: Tensor, b: Tensor, bias: Tensor | None, tiles: str) -> Tensor:
    from .epilogue import product

    return product(x, weight, t, b, bias, tiles)


def read(weight: Weight, dtype: torch.dtype) -> AbstractContextManager[Tensor]:
    """The weight (O, I), for the products that are started inside."""
    return nullcontext(weight) if isinstance(weight, Tensor) else weight.read(dtype)


def _dense(weights: Sequence[Weight]) -> list[Tensor]:
    return [w for w in weights if isinstance(w, Tensor)]


def _padding(room: Room, like: Tensor) -> list[Tensor]:
    missing = room.spare - like.shape[1]
    return [like.new_zeros(like.shape[0], missing)] if missing else []
