"""What reading one adapter may cost: one budget for everything in its folder, and its name in every message."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ...errors import AfinaError, ConfigError, TargetError

_V = TypeVar("_V")
_T = TypeVar("_T")

PATTERN_SECONDS = 0.5
"""Ordinary patterns take microseconds a name; a file's work all together stays below a second."""


@dataclass
class Budget:
    """What is left.

    Attributes:
        seconds: for compiling and matching patterns.
    """

    seconds: float = PATTERN_SECONDS
    _kept: dict[int, tuple[object, Any]] = field(default_factory=dict)

    def remembered(self, value: _V, make: Callable[[_V], _T]) -> _T:
        """What `make` makes of an object that does not change meanwhile, made once."""
        kept = self._kept.get(id(value))
        if kept is None:
            kept = self._kept[id(value)] = value, make(value)
        found: _T = kept[1]
        return found

    @contextlib.contextmanager
    def matching(self, where: str, got: object) -> Iterator[float]:
        """Spend time on matching; gives the seconds that are left.

        Raises:
            ConfigError: there is none left.
        """
        start = time.perf_counter()
        try:
            yield max(self.seconds, 1e-3)
        except TimeoutError:
            self.seconds = 0.0
        self.seconds -= time.perf_counter() - start
        if self.seconds <= 0:
            raise ConfigError(f"the patterns take too long: {PATTERN_SECONDS} seconds in all are allowed", where=where,
                              got=got, fix="list the modules' names instead")  # fmt: skip


_OPEN: ContextVar[Budget | None] = ContextVar("budget", default=None)


@contextlib.contextmanager
def budget() -> Iterator[Budget]:
    """The budget that is open, or else a new one."""
    found = _OPEN.get()
    if found is not None:
        yield found
        return
    token = _OPEN.set(Budget())
    try:
        yield _OPEN.get() or Budget()
    finally:
        _OPEN.reset(token)


@contextlib.contextmanager
def reading(weights: Path, config: Path) -> Iterator[Budget]:
    """Everything that is done because an adapter's files say so: on one budget, and with the file in every error."""
    try:
        with budget() as open_budget:
            yield open_budget
    except AfinaError as error:
        file = config if isinstance(error, (ConfigError, TargetError)) else weights
        if not any(str(f) in f"{error.where} {error.got}" for f in (weights, config)):
            error.where = file if error.where is None else f"{file}: {error.where}"
        raise
