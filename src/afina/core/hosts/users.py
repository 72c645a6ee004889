"""Who uses a model now: calls on any number of threads at once, or one thread that changes which adapters there are."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from ...errors import ConfigError


class Users:
    """A lock with many readers (calls) or one writer (a change); both may nest on one thread."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._calling: dict[int, int] = {}
        self._changing: tuple[int, int] | None = None
        self._waiting = 0

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """Run a call; one that is not inside another of its thread waits while adapters are changed."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> None:
        """Begin what `calling` holds around a call; `leave` ends it."""
        me = threading.get_ident()
        with self._condition:
            while me not in self._calling and not self._may_enter(me):
                self._condition.wait()
            self._calling[me] = self._calling.get(me, 0) + 1

    def leave(self) -> None:
        """The end of a call; none is needed to have begun, because hooks run after failures too."""
        me = threading.get_ident()
        with self._condition:
            left = self._calling.pop(me, 1) - 1
            if left:
                self._calling[me] = left
            self._condition.notify_all()

    @property
    def inside(self) -> bool:
        """Whether this thread is in a call."""
        return threading.get_ident() in self._calling

    def _may_enter(self, me: int) -> bool:
        if self._changing is not None:
            return self._changing[0] == me
        return not self._waiting  # who waits to change comes first, or might wait for ever

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Change adapters, when the calls of all other threads have ended.

        Raises:
            ConfigError: inside a call, while another thread waits to change adapters too: neither could go on.
        """
        me = threading.get_ident()
        with self._condition:
            if self._changing is None or self._changing[0] != me:
                self._wait_for_the_others(me)
            depth = self._changing[1] if self._changing is not None else 0
            self._changing = (me, depth + 1)
        try:
            yield
        finally:
            with self._condition:
                assert self._changing is not None
                self._changing = (me, self._changing[1] - 1) if self._changing[1] > 1 else None
                self._condition.notify_all()

    def _wait_for_the_others(self, me: int) -> None:
        if me in self._calling and (self._waiting or self._changing is not None):
            raise ConfigError("adapters cannot be changed inside a call while another thread changes them too",
                              where="the model", fix="change them between calls")  # fmt: skip
        self._waiting += 1
        try:
            while self._changing is not None or self._calling.keys() - {me}:
                self._condition.wait()
        finally:
            self._waiting -= 1
