"""Changes of which adapters there are, and which apply: made as a whole, when no other thread is calling the model."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from ..hosts.tuner import Tuner

_F = TypeVar("_F", bound=Callable[..., Any])


def changes(change: _F) -> _F:
    """Decorates a method of a `PeftModel` or its tuner: it waits until the calls of other threads have ended, and they
    for it.

    Raises:
        ConfigError: inside a call, while another thread waits to change adapters too.
    """

    @functools.wraps(change)
    def alone(self: Any, *args: Any, **kwargs: Any) -> Any:
        tuner = self if isinstance(self, Tuner) else self.base_model
        with tuner.scope.users.changing():
            return change(self, *args, **kwargs)

    return cast("_F", alone)


@contextlib.contextmanager
def undone_on_error(undo: Callable[[], Any]) -> Iterator[None]:
    """Call `undo` if what is inside raises."""
    done = False
    try:
        yield
        done = True
    finally:
        if not done:
            undo()
