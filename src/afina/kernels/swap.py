"""Another forward for one module, in a way that copies and saves like the module's own class."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn


def swap_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Give one module another forward by a subclass of its own class.

    Args:
        forward: called as forward(kind, module, ...) with the module's own class.
    """
    kind: Any = type(module)
    module.__class__ = _subclass(kind, forward)


@functools.lru_cache(maxsize=64)
def _subclass(kind: Any, forward: Callable[..., Any]) -> Any:
    wrapped = functools.wraps(kind.forward)(functools.partial(_call, kind, forward))

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapped(self, *args, **kwargs)

    method.__signature__ = inspect.signature(kind.forward)  # type: ignore[attr-defined]

    def reduce(self: Any, protocol: Any) -> Any:
        _, _, *state = kind.__reduce_ex__(self, protocol)
        return _remade, (kind, forward), *state

    names = {"forward": method, "__module__": kind.__module__, "__doc__": kind.__doc__, "plain_class": kind,
             "__reduce_ex__": reduce}  # fmt: skip
    return type(kind.__name__, (kind,), names)


def _remade(kind: Any, forward: Callable[..., Any]) -> nn.Module:
    """What a copy or a pickled module begins as, before its state comes."""
    again = _subclass(kind, forward)
    made: nn.Module = again.__new__(again)
    return made


def _call(kind: type[nn.Module], forward: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    return forward(kind, self, *args, **kwargs)
