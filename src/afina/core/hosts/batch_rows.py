"""Adapters per row of a batch: each group of rows goes through its own adapter, the base layer once through all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ...errors import ConfigError
from ..layers.tensor_parallel import CutLinear
from .calls import Call, within
from .view import View

if TYPE_CHECKING:
    from .host import Host

BASE = "__base__"
"""The name that means: no adapter on this row."""
EXPERTS_FIRST = frozenset({"Llama4TextExperts"})
"""Modules whose input holds all tokens once for each expert, one expert after the other."""


@runtime_checkable
class MadeTogether(Protocol):
    """An adapter that may make a layer's rows along with those of other adapters."""

    def all_rows(self, host: Host, call: Call, x: Tensor) -> Tensor | None:
        """The layer's output for all rows; None where each group of rows is made by itself."""


class Rows:
    """Which adapter each row of a batch goes through.

    Attributes:
        names: an adapter's name for every row.
        groups: adapter -> the numbers of its rows.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.groups = {n: [i for i, m in enumerate(names) if m == n] for n in dict.fromkeys(names)}

    def pick(self, name: str, value: Any) -> Any:
        """What belongs to an adapter's rows, of a value with one entry a row (a tensor or a list)."""
        if isinstance(value, (list, tuple)) and len(value) == len(self.names):
            return [value[i] for i in self.groups[name]]
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == len(self.names):
            return value[torch.tensor(self.groups[name], device=value.device)]
        return value


def run_rows(host: Host, call: Call, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A layer's output where every row goes through its own adapter."""
    rows = call.rows
    assert rows is not None
    names = {n: i for n, i in rows.groups.items() if host.adapter(n) is not None or n in host.biases}
    if not names:
        return host.base.run(x, *args, **kwargs)
    if isinstance(host.base, CutLinear):
        raise ConfigError(
            "rows of one batch cannot go through adapters of their own on a tensor-parallel base",
            where=type(host.base_layer).__name__,
            fix="run one batch per adapter with set_adapter",
        )
    made = None if args or kwargs else _made_together(host, call, names, x)
    if made is not None:
        return host.finish(made, x)
    blocks = _blocks(host, x, args or kwargs)
    times, x = (1, x) if host.base.kind == "attention" else _times(rows, x, blocks)

    def all_rows() -> Any:
        return host.base.run(x, *args, **kwargs)

    whole = _Once(all_rows)
    if len(rows.groups) == 1:
        if host.base.kind == "attention":
            _check_attention(host, rows, x)
        return _one(host, call, rows.names[0], x, args, kwargs, whole)
    outs: list[Any] = []
    order: list[int] = []
    for name, numbers in rows.groups.items():
        own = [(b * len(rows.names) + i) * times + k for b in range(blocks) for i in numbers for k in range(times)]
        order += own
        in_a_row = own == list(range(own[0], own[0] + len(own)))
        index = slice(own[0], own[-1] + 1) if in_a_row else torch.tensor(own, device=x.device)
        if name not in names:
            outs.append(_select(whole(), index, x.shape[0]))
            continue
        more, named = _select(args, index, x.shape[0]), _select(kwargs, index, x.shape[0])

        def of_group(index: Tensor | slice = index) -> Any:
            return _select(whole(), index, x.shape[0])

        outs.append(_one(host, call, name, x[index], more, named, of_group))
    back = None if order == sorted(order) else torch.tensor(order, device=x.device).argsort()
    return _together(outs, back, len(order))


def _made_together(host: Host, call: Call, names: Iterable[str], x: Any) -> Tensor | None:
    """The output in one product with what the layers beside it make of the same input, where that is faster."""
    assert call.rows is not None
    adapter: Any = host.adapter(next(iter(names)))
    divides = isinstance(x, Tensor) and x.dim() > 1 and x.shape[0] % len(call.rows.names) == 0
    if host.beside is None or not divides or len(call.rows.groups) == 1 or not isinstance(adapter, MadeTogether):
        return None
    return adapter.all_rows(host, call, x)


class _Once:
    """The base layer's output for the whole batch, computed when an adapter first asks for it."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run, self.value = run, None

    def __call__(self) -> Any:
        if self.value is None:
            self.value = self.run()
        return self.value


def _one(host: Host, call: Call, name: str, x: Any, args: Any, kwargs: Any, whole: Callable[[], Any]) -> Any:
    adapter = host.adapter(name)
    stack = () if adapter is None else (adapter,)
    bias = next((b for n, b in host.biases.items() if n == name), None)
    assert call.rows is not None
    nested = isinstance(host.base_layer, type(host))
    whole_or_none = None if bias is not None or nested else whole
    count = len(call.rows.groups[name])
    view = View(host, stack, x, args, kwargs, whole=whole_or_none, bias=bias, rows=count, call=call)
    # Hosts of other parameters of the same module get these rows alone.
    with within(call.narrowed(Rows((name,)))) if nested else contextlib.nullcontext():
        out = view(x)
    return host.finish(out, x)


def _check_attention(host: Host, rows: Rows, x: Any) -> None:
    """Attention's input may have its rows in the second dimension, but the model's inputs have them in the first."""
    dim = 0 if getattr(host.get_base_layer(), "batch_first", False) else 1
    if not isinstance(x, Tensor) or x.dim() < 3 or x.shape[dim] % len(rows.names):
        raise ConfigError("this layer's input does not have the batch's rows", where=type(host.base_layer).__name__,
                          got=tuple(getattr(x, "shape", ())), expected=f"{len(rows.names)} rows",
                          fix="run one batch per adapter with set_adapter")  # fmt: skip


def _blocks(host: Host, x: Any, others: Any) -> int:
    """How many times over the layer's input holds the batch's rows."""
    if host.base.kind != "experts" or others or x.dim() != 2:
        return 1
    module = host.get_base_layer()
    if type(module).__name__ not in EXPERTS_FIRST:
        raise ConfigError("experts that are given tokens alone do not tell which rows those are of",
                          where=type(module).__name__, got=tuple(x.shape),
                          fix="run one batch per adapter with set_adapter")  # fmt: skip
    return host.base.shape[0]


def _times(rows: Rows, x: Any, blocks: int = 1) -> tuple[int, Any]:
    """How many rows of this layer's input belong to one row of the batch (beams, or tokens laid out flat)."""
    count = len(rows.names) * blocks
    if x.shape[0] == 1 and count > 1:
        x = x.expand(count, *x.shape[1:])
    if x.shape[0] % count:
        raise ConfigError("the layer's input does not divide into the batch's rows", where="adapter_names",
                          got=tuple(x.shape), expected=f"a multiple of {count} rows",
                          fix="run one batch per adapter with set_adapter")  # fmt: skip
    return x.shape[0] // count, x


def _select(value: Any, index: Tensor | slice, count: int) -> Any:
    """The rows `index` of whatever has one entry a row; all else as it is."""
    if isinstance(value, Tensor):
        whole = value.dim() > 0 and value.shape[0] == count
        if not whole:
            return value
        return value[index] if isinstance(index, slice) else value.index_select(0, index.to(value.device))
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(_select(v, index, count) for v in value)
    if isinstance(value, dict):
        return {k: _select(v, index, count) for k, v in value.items()}
    return value


def _together(parts: list[Any], back: Tensor | None, count: int) -> Any:
    """One output from those of the groups, rows in the batch's order, in which they are already without `back`."""
    first = parts[0]
    if isinstance(first, Tensor):
        if not first.dim() or sum(p.shape[0] for p in parts) != count:
            return first
        joined = torch.cat(parts)
        return joined if back is None else joined.index_select(0, back)
    if isinstance(first, (tuple, list)):
        return type(first)(_together(list(p), back, count) for p in zip(*parts, strict=True))
    return first
