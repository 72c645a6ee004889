"""What belongs to one call of a model: which rows take which adapter, whether adapters are off, what methods get.

It travels with the call and never lies on the model, so that any number of threads and asyncio tasks can call one model
with adapters of their own. A call is seen by what runs inside it on its thread (or task), and by its layers that
gradient checkpointing runs again in the backward pass, later and maybe on another thread: those find it by the autograd
node at which they run again, whose number lies among those that the call's forward pass made.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from .users import Users

if TYPE_CHECKING:
    from .batch_rows import Rows

_NOTHING: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
_CALL: ContextVar[Call | None] = ContextVar("afina_call", default=None)


class _Compiled(threading.local):
    """The same for compiled code, which cannot read context variables; there from a thread's beginning, because the
    compiler would compile anew when it comes to be."""

    def __init__(self) -> None:
        self.call: Call | None = None


_COMPILED = _Compiled()


class Scope:
    """The model that calls belong to: its tuner and its hosts hold the same one. Copies of a model have their own.

    Attributes:
        alive: calls whose outputs can still be differentiated.
        contexts: the last ones in which layers were called past the model's own forward.
        swapping: held while a layer runs with other parameters in the places of its own.
        users: who calls the model, and who changes its adapters.
        off: hosts of trained copies that were switched off; libraries that go from layer to layer do not switch them on
            again.
    """

    def __init__(self) -> None:
        self.alive: weakref.WeakSet[Call] = weakref.WeakSet()
        self.contexts: deque[Call] = deque(maxlen=16)
        self.swapping = threading.RLock()
        self.users = Users()
        self.off: weakref.WeakSet[Any] = weakref.WeakSet()

    def __reduce__(self) -> Any:
        return Scope, ()

    def watch(self, model: nn.Module) -> None:
        """Know a model's own calls for calls, also where they come through no `PeftModel`."""
        if not any(getattr(hook, "__self__", None) is self for hook in model._forward_pre_hooks.values()):
            model.register_forward_pre_hook(self._before, prepend=True)
            model.register_forward_hook(self._after, always_call=True)

    def _before(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling():
            self.users.enter()

    def _after(self, module: nn.Module, args: Any, out: Any) -> None:
        if not torch.compiler.is_compiling():
            self.users.leave()

    def again(self) -> Call | None:
        """The call whose layers the backward pass is running again, if any.

        Raises:
            ConfigError: there are several that it could be.
        """
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return None
        calls = list(self.alive)
        number = node._sequence_nr()
        found = [c for c in calls if c.span[0] <= number < c.span[1]]
        if len(found) > 1:  # numbers are each thread's own
            found = [c for c in found if torch._C._current_graph_task_id() in c.graphs]
        found = found or [c for c in self.contexts if c.span[0] <= number < c.span[1]]
        if len(found) == 1:
            return found[0]
        if found or any(not c.is_plain for c in calls):
            raise ConfigError("a layer runs again in a backward pass, and it is not known for which call",
                              where="gradient checkpointing",
                              fix="run backward for each call by itself, and checkpoint without nesting")  # fmt: skip
        return None


def unwatch(model: nn.Module) -> None:
    """Take the hooks of `Scope.watch` away."""
    for held in (model._forward_pre_hooks, model._forward_hooks):
        for key in [k for k, hook in held.items() if isinstance(getattr(hook, "__self__", None), Scope)]:
            del held[key]
            model._forward_hooks_always_called.pop(key, None)


class Call:
    """One call, or the context of several.

    Attributes:
        scope: the model that is called.
        rows: which adapter each row of the batch goes through; None where all go through the active ones.
        enabled: whether adapters apply.
        inputs: adapter -> what its method was given.
        notes: what methods remember from layer to layer, each under a key of its own.
        outer: the call or context in which it is made.
        span: the numbers of the autograd nodes that its forward pass made, from and to.
        graphs: the backward passes that came through its outputs.
    """

    def __init__(
        self,
        scope: Scope,
        rows: Rows | None = None,
        enabled: bool = True,
        inputs: Mapping[str, Mapping[str, Any]] = _NOTHING,
        outer: Call | None = None,
    ) -> None:
        self.scope, self.rows, self.enabled, self.inputs, self.outer = scope, rows, enabled, inputs, outer
        self.notes: dict[Any, Any] = {}
        self.span = (0, 0)
        self.graphs: set[int] = set()

    @property
    def is_plain(self) -> bool:
        """Whether its layers run as without it."""
        return self.rows is None and self.enabled and not self.inputs and not self.notes

    def narrowed(self, rows: Rows) -> Call:
        """The same call for some of its rows."""
        inner = Call(self.scope, rows, self.enabled, self.inputs)
        inner.notes = self.notes
        return inner

    def _ran(self, _: Any) -> None:
        self.graphs.add(torch._C._current_graph_task_id())

    def keep_for_backward(self, outputs: Any, start: int) -> None:
        """Stay known for as long as the outputs can be differentiated; `start`: autograd's number before the call."""
        nodes = {t.grad_fn for t in _tensors(outputs) if t.grad_fn is not None}
        if nodes:
            self.span = (start, node_number())
            self.scope.alive.add(self)
        for node in nodes:
            node.register_prehook(self._ran)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, tuple, list)):
        parts: Iterable[Any] = value.values() if isinstance(value, dict) else value
        for part in parts:
            yield from _tensors(part)


def node_number() -> int:
    """The number that autograd's next node on this thread will have."""
    count: Callable[[], int] = vars(torch.autograd)["_get_sequence_nr"]
    return count()


def innermost() -> Call | None:
    """The call that this code runs in, of whatever model."""
    if torch.compiler.is_compiling():
        return _COMPILED.call
    return _CALL.get()


def current(scope: Scope | None) -> Call | None:
    """The call of this model that this code runs in, or runs again for."""
    call = innermost()
    while call is not None and call.scope is not scope:
        call = call.outer
    if call is None and scope is not None and not torch.compiler.is_compiling():
        return scope.again() if scope.alive or scope.contexts else None
    return call


@contextlib.contextmanager
def within(call: Call) -> Iterator[Call]:
    """Run what is inside in a call."""
    call.outer = innermost()
    if torch.compiler.is_compiling():
        _COMPILED.call = call
        yield call
        _COMPILED.call = call.outer
        return
    token = _CALL.set(call)
    before, _COMPILED.call = _COMPILED.call, call
    try:
        yield call
    finally:
        _COMPILED.call = before
        _CALL.reset(token)


def entered(
    scope: Scope, rows: Rows | None = None, inputs: Mapping[str, Mapping[str, Any]] = _NOTHING, enabled: bool = True
) -> contextlib.AbstractContextManager[Call]:
    """A call inside whatever call or context of this model there is, whose switch it keeps to."""
    around = current(scope)
    return within(Call(scope, rows, enabled and (around is None or around.enabled), inputs))


@contextlib.contextmanager
def switched_off(scope: Scope) -> Iterator[None]:
    """A context in which no adapter applies."""
    start = node_number()
    with within(Call(scope, enabled=False)) as call:
        yield
    call.span = (start, node_number())
    if torch.is_grad_enabled() and call.span[1] > start:
        scope.contexts.append(call)
