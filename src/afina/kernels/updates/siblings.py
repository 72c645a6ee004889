"""Layers of a model that read the same input, and how their outputs are made together.

A layer asked for its output makes the others' too, which they hand out when they are asked with the same input. Only in
16 bits: in float32 the merged order (`lora_linear`) has no thin products to share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...core.hosts.host import Host, hosts
from ..cuda.few_bits import shares_buffer
from . import joint
from .joint import Layer
from .wide import ADDED, LOCK, Room, Way, make_room, saves_apart


class Choose(Protocol):
    """How updates reach the outputs and the input's gradient."""

    def __call__(self, layers: Sequence[Layer], x: Tensor) -> Way | None:
        """Of frozen layers with their updates, and the input (..., I): None where rows with adapters of their own are
        made one group after the other."""


class Siblings:
    """Hosts that read the same input.

    Attributes:
        made: an input, and the outputs that were made along with another's and not asked for yet, by host.
        choose: says how the updates reach the outputs; None where they are added.
        ways: what it said.
        room: what their weights lie in, where their products carry the updates.
        stream: the one on which the room is written to and read.
    """

    def __init__(self, members: Sequence[Host], choose: Choose | None = None) -> None:
        self.members, self.choose = tuple(members), choose
        self.ways: dict[Any, Way] = {}
        self.room: Room | None = None
        self.stream = 0
        # The input and the outputs in one value, so that no other thread's come between.
        self.made: tuple[Tensor | None, dict[int, tuple[Tensor, Any]]] = (None, {})

    def __getstate__(self) -> dict[str, Any]:
        """Copies are made without outputs in flight."""
        return {**self.__dict__, "made": (None, {})}

    def takes(self, x: Tensor) -> bool:
        """Whether its layers are made together for such an input: in float32 the merged order gains more where the
        weights need not be dequantised for it."""
        pays = x.dtype.itemsize == 2 or self.choose is not None or self.members[0].base.quantised
        return pays and x.numel() > 0

    def takes_rows(self, x: Tensor) -> bool:
        """Whether it is asked if rows with updates of their own are made together."""
        return self.choose is not None and not torch.compiler.is_compiling() and not x.is_inference() and x.numel() > 0

    def output(self, host: Host, x: Tensor, layer_of: Callable[[Host, Tensor], Layer | None]) -> Tensor | None:
        """The host's output for x; None where one of them is no such layer now, or nothing is gained.

        Args:
            layer_of: what a host is, if it is a frozen layer with low-rank updates and nothing else.
        """
        me = next(i for i, member in enumerate(self.members) if member is host)
        source, waiting = self.made
        found = waiting.pop(me, None) if source is x else None
        if found is not None:
            out, state = found
            if not waiting:
                self.made = (None, {})
            mine = layer_of(host, x)
            if mine is not None and _state(mine, x) == state:
                return out
        layers = [layer for layer in (layer_of(member, x) for member in self.members) if layer is not None]
        self.made = (None, {})
        way = self._way(layers, x) if len(layers) == len(self.members) else None
        if way is None:
            return None
        room = self._room_for(layers, way, x)
        if room is None and len(layers) == 1 and isinstance(layers[0].weight, Tensor) and layers[0].rows is None:
            return None
        states = [_state(layer, x) for layer in layers]
        made = dict(enumerate(zip(joint.lora_linears(x, layers, room), states, strict=True)))
        out, _ = made.pop(me)
        self.made = (x, made)
        return out

    def _way(self, layers: list[Layer], x: Tensor) -> Way | None:
        """How their updates reach the outputs; None where rows go through theirs one group after the other."""
        by_rows = any(layer.rows is not None for layer in layers)
        if self.choose is None or torch.compiler.is_compiling():
            return None if by_rows else ADDED
        if by_rows:
            return self.choose(layers, x)
        if len(_dense(layers)) < len(layers):
            return ADDED
        key = tuple(len(layer.a) for layer in layers), x.dtype, x.device
        if key not in self.ways:
            self.ways[key] = self.choose(layers, x) or ADDED
        return self.ways[key]

    def _room_for(self, layers: list[Layer], way: Way, x: Tensor) -> Room | None:
        """Where the weights lie, if their products carry these updates; they are moved there in the first step."""
        weights, ranks = _dense(layers), tuple(len(layer.a) for layer in layers)
        if len(weights) < len(layers):
            return None
        if way.moves and (room := self._moved(weights, ranks, way, x, layers[0].rows is not None)) is not None:
            return room
        way = way.without_room
        return None if way == ADDED else Room(tuple(map(len, weights)), x.shape[-1], ranks, way)

    def _moved(
        self, weights: list[Tensor], ranks: tuple[int, ...], way: Way, x: Tensor, by_rows: bool
    ) -> Room | None:  # fmt: skip
        stream = _stream(x)
        with LOCK:
            lost = self.room is None or not self.room.holds(weights)
            held = ranks if self.room is None or lost else self.room.ranks
            small = by_rows and any(a > b for a, b in zip(ranks, held, strict=True)) and self.stream == stream
            if lost or small:
                frozen = [w for w in weights if type(w) is nn.Parameter and w.device == x.device]
                if len(frozen) < len(weights):
                    return None
                held = tuple(map(max, ranks, held))
                self.room, self.stream = make_room(frozen, held, way), stream
                for host in self.members:
                    saves_apart(host.base.module)
        room = self.room
        there = self.stream == stream or _is_recorded(x)
        fits = all(a <= b for a, b in zip(ranks, held, strict=True)) if by_rows else ranks == held
        return room._replace(way=way) if room is not None and there and fits else None


def _dense(layers: list[Layer]) -> list[Tensor]:
    return [layer.weight for layer in layers if isinstance(layer.weight, Tensor)]


def _stream(x: Tensor) -> int:
    """The CUDA stream that this thread works on; 0 elsewhere."""
    gpu: Any = torch.cuda
    return gpu.current_stream(x.device).cuda_stream if x.device.type == "cuda" else 0


def _is_recorded(x: Tensor) -> bool:
    """Whether work goes into a CUDA graph, which runs on whichever stream it is launched on."""
    gpu: Any = torch.cuda
    return x.device.type == "cuda" and bool(gpu.is_current_stream_capturing())


def _state(layer: Layer, x: Tensor) -> Any:
    """What changes when a layer's update or its input does."""
    if torch.compiler.is_compiling():
        return None
    sources = layer.sources or (layer.a, layer.b)
    learns = torch.is_grad_enabled()
    return x._version, learns, layer.scale, layer.rows, *((id(t), t._version) for t in sources)


def join(base: nn.Module, try_out: Callable[[], Any], choose: Choose | None = None) -> int:
    """Tell hosts of their siblings; returns how many sets there are.

    Args:
        choose: says whether products carry the updates, which is then asked of every layer; None where they do not.
        try_out: runs the model on something small, from which is seen which layers of one module read the same tensor.
    """
    seen: dict[Host, Tensor] = {}
    linear = [(path, host) for path, host in hosts(base) if host.base.kind == "linear"]
    linear = [(path, host) for path, host in linear if not host.base.quantised or shares_buffer(host.base.module)]
    if len(linear) < 2:
        return 0

    def look(host: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(host, Host) and args:
            seen[host] = args[0]

    handles = [host.register_forward_pre_hook(look) for _, host in linear]
    try:
        try_out()
    finally:
        for handle in handles:
            handle.remove()
    sets: dict[tuple[str, int], list[Host]] = {}
    for path, host in linear:
        if host in seen:
            sets.setdefault((path.rpartition(".")[0], id(seen[host])), []).append(host)
    found = [members for members in sets.values() if len(members) > 1]
    alone = [[one] for one, *others in sets.values() if not others and (choose is not None or one.base.quantised)]
    for members in found + alone:
        beside = Siblings(members, choose)
        for host in members:
            host.beside = beside
    return len(found)
