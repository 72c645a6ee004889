"""A training step on tensors without data, written down: what is allocated and freed, in order, and what is computed.

A `Trace` is a dispatch mode. Whatever runs under it is seen operation by operation: new storages by their bytes, freed
ones as Python lets go of them, products by their shapes, all else by the bytes that it reads and writes. Answers that
tensors without data cannot give are made up (`Trace.__torch_dispatch__`). With torch's FakeTensorMode below it tensors
say that they are on the processor, so that the kernels of a real run are chosen; on the meta device nothing has to be
said.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from ..kernels.cpu.native.traced import TRACED
from .known import Known
from .work import Product, Work

PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "loss", "temporary", "libraries")
"""What an allocation is for; `libraries`: kernels that oneDNN keeps for the shapes that it met."""
KERNEL = 560 * 2**10
"""Bytes that oneDNN keeps in its cache for every product of another shape (measured: 0.53 to 0.59 MiB)."""
CONVOLUTIONS = {(True, False): 284 * 2**10, (False, False): 75 * 2**10, (True, True): 215 * 2**10,
                (False, True): 222 * 2**10}  # fmt: skip
"""The same for every convolution (3 x 3) of another shape, by whether it runs forward and is in 16 bits (measured)."""
_SMALLEST = 16**3


class Event(NamedTuple):
    """An allocation (`size` > 0), or its end (`size` < 0). `key`: of the allocation; `step`: 0 before the first one."""

    key: int
    size: int
    step: int


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what runs under it.

    Attributes:
        events: allocations and their ends, in order.
        parts: what each allocation is for, by its key.
        part: what new ones are for.
        keeps_kernels: whether products leave oneDNN's kernels in memory.
        step: that runs; `works` has what each computes.
        number: the answer where code asks for a tensor's floating-point number.
        read: allocations that something was computed of, while `part` was another than the weights.
        known: numbers of integers and masks, by which code takes its way and shapes are decided.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[Event] = []
        self.parts: dict[int, str] = {}
        self.part, self.step, self.number = "weights", 0, 1.0
        self.works: dict[int, Work] = {}
        self.known = Known()
        self.live: dict[int, int] = {}
        self.kernels: set[Any] = set()
        self.read: set[int | None] = set()
        self.keeps_kernels = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.rpartition("::")[2]
        if name == "_local_scalar_dense":
            return self._number(args[0])
        if name in ("equal", "allclose"):
            return True
        kwargs, real = kwargs or {}, None
        if torch.Tag.dynamic_output_shape in func.tags and name not in _INDEXED:
            real = self.known.computed(func, args, kwargs)
            out = self._by_numbers(func, args, kwargs, real)
            tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        else:
            out = func(*self._placed(name, args), **kwargs)
            tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            real = self.known.computed(func, args, kwargs, tensors)
        if real is not None:
            self.known.keep(tensors, real)
        for tensor in tensors:
            self._see(tensor.untyped_storage())
        if not _is_view(func):
            self._count(name, args, kwargs, tensors)
        return out

    def _number(self, tensor: Tensor) -> bool | int | float:
        """What code asks a tensor for; if it is not known, a mask is taken to hide something, a count to be one."""
        found = self.known.of(tensor)
        if found is not None:
            with _disable_current_modes():
                return found.item()
        return False if tensor.dtype == torch.bool else 1 if not tensor.is_floating_point() else self.number

    def _by_numbers(self, func: Any, args: Any, kwargs: Any, real: list[Tensor] | None) -> Any:
        """The result of an operation whose shape numbers decide; without them a mask is taken to leave all places."""
        name = func._schema.name.rpartition("::")[2]
        if real is not None:
            made = [args[0].new_empty(one.shape, dtype=one.dtype) for one in real]
            return made[0] if len(made) == 1 else tuple(made)
        if name == "nonzero":
            return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.long)
        if name != "masked_select":
            return func(*args, **kwargs)
        mask = self.known.of(args[1])
        with _disable_current_modes():
            count = int(mask.sum()) if mask is not None else args[0].numel()
        return args[0].new_empty(count)

    def _placed(self, name: str, args: Any) -> Any:
        """The arguments of an operation, masks that pick places turned into numbers."""
        if name not in _INDEXED or len(args) < 2:
            return args
        return (args[0], [part for index in args[1] for part in self._places(index)], *args[2:])

    def _places(self, index: Any) -> list[Any]:
        """An index by numbers; a mask becomes one for each of its dimensions."""
        if not isinstance(index, Tensor) or index.dtype != torch.bool:
            return [index]
        mask, count = self.known.of(index), index.numel()
        with _disable_current_modes():
            real = mask.nonzero().unbind(1) if mask is not None else None
            count = len(real[0]) if real else count
        out = [index.new_empty(count, dtype=torch.long) for _ in range(index.dim())]
        if real:
            self.known.keep(out, real)
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.live:
            return
        key, size = len(self.parts), storage.nbytes()
        self.live[storage._cdata], self.parts[key] = key, self.part
        self.events.append(Event(key, size, self.step))
        weakref.finalize(storage, self._drop, storage._cdata, key, size)

    def _drop(self, cdata: int, key: int, size: int) -> None:
        self.live.pop(cdata, None)
        self.events.append(Event(key, -size, self.step))

    def _count(self, name: str, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        work = self.works.setdefault(self.step, Work())
        if name.startswith(("empty", "new_empty", "detach")):
            return
        work.calls += 1
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if self.part != "weights":
            self.read.update(self.live.get(leaf.untyped_storage()._cdata) for leaf in inputs)
        product = _product(name, inputs, outputs)
        if product is None:
            work.move(_touched(name, inputs, outputs))
        else:
            for one in product:
                work.products[one] += 1
            self._keep_kernels(name, product, inputs)

    def _keep_kernels(self, name: str, products: list[Product], inputs: list[Tensor]) -> None:
        """What oneDNN keeps for a product that it makes for the first time."""
        weight = inputs[1 if name == "convolution" else -1]
        convolved = name.startswith("convolution") and weight.shape[-1] > 1
        if not self.keeps_kernels or not (convolved or by_onednn(name, products[0])):
            return
        key = (name, inputs[0].shape, weight.shape) if convolved else (*products[0], inputs[-1].stride())
        if key not in self.kernels:
            self.kernels.add(key)
            self.parts[len(self.parts)] = "libraries"
            size = CONVOLUTIONS[name == "convolution", products[0].dtype.itemsize == 2] if convolved else KERNEL
            self.events.append(Event(len(self.parts) - 1, size, self.step))

    def sizes(self) -> dict[int, int]:
        """Bytes of what is alive, by its keys."""
        alive = set(self.live.values())
        return {event.key: event.size for event in self.events if event.size > 0 and event.key in alive}

    def ran(self, tensors: list[Tensor]) -> None:
        """A kernel that is no operation of torch's read and wrote these."""
        work = self.works.setdefault(self.step, Work())
        work.calls += 1
        work.move([t.numel() * t.element_size() for t in tensors])

    def mark(self, tensors: Any, part: str) -> None:
        """These are for `part`, whatever ran when they came."""
        for tensor in tensors:
            key = self.live.get(tensor.untyped_storage()._cdata)
            if key is not None:
                self.parts[key] = part

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """What is allocated meanwhile is for `part`."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def __enter__(self) -> Any:
        self._token = TRACED.set(self.ran)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        TRACED.reset(self._token)
        super().__exit__(*error)  # type: ignore[no-untyped-call]


def by_onednn(name: str, product: Product) -> bool:
    """Whether torch lets oneDNN make such a product on a processor."""
    size = product.rows * product.inner * product.columns
    return name == "_linear_pointwise" or (product.dtype.itemsize == 2 and name in _GEMMS and size > _SMALLEST)


def _is_view(func: Any) -> bool:
    """Whether an operation only looks at its input otherwise."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _touched(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> list[int]:
    """Bytes of what an operation reads and writes; of a table only the rows that are looked up."""
    touched = 2 * outputs if name in ("embedding", "index", "index_select", "gather") else inputs + outputs
    return [t.numel() * t.element_size() for t in touched]


def _product(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> list[Product] | None:
    """The products that an operation is made of; None where it is none."""
    if name in ("mm", "addmm", "addmm_", "_linear_pointwise", "bmm", "baddbmm", "baddbmm_", "linear"):
        a, b = inputs[1:3] if name.startswith(("addmm", "baddbmm")) else inputs[:2]
        b_columns = b.shape[-2] if name in ("_linear_pointwise", "linear") else b.shape[-1]
        count = a.shape[0] if a.dim() == 3 and "bmm" in name else 1
        rows = a.numel() // max(1, a.shape[-1] * count)
        return [Product(a.dtype, count, rows, a.shape[-1], b_columns)]
    if name in ("attention", "attention_backward") or name.startswith("_scaled_dot_product"):
        return _attention(name, inputs)
    if name in ("convolution", "convolution_backward"):
        out, weight = (outputs[0], inputs[1]) if name == "convolution" else (inputs[0], inputs[2])
        one = Product(out.dtype, 1, out.numel() // out.shape[1], weight.numel() // weight.shape[0], out.shape[1])
        return [one] if name == "convolution" else [one, one]
    return None


_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")
_GEMMS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "linear")


def _attention(name: str, inputs: list[Tensor]) -> list[Product]:
    """Of attention: scores and output forward, five products backward; under a causal mask half of each is made."""
    q, k = inputs[1:3] if name.endswith("backward") else inputs[:2]
    b, h, t, d = q.shape
    scores = Product(q.dtype, b * h, t, d, k.shape[2])
    return [scores] * (5 if name.endswith("backward") else 2)
