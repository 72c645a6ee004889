"""Who gives a run its base: what loads it, or someone who has it already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Loader = Callable[[Callable[[], Any]], Any]
"""Gets what would load a base now, and gives one."""
_LOADER: ContextVar[Loader | None] = ContextVar("afina_loader", default=None)


@contextmanager
def loaded_by(loader: Loader) -> Iterator[None]:
    """Have the bases that are loaded within given by `loader`."""
    token = _LOADER.set(loader)
    try:
        yield
    finally:
        _LOADER.reset(token)


def loaded(fresh: Callable[[], Any]) -> Any:
    """A base, loaded by `fresh` unless someone else gives it."""
    loader = _LOADER.get()
    return fresh() if loader is None else loader(fresh)
