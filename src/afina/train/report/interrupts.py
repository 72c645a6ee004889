"""Signals that ask a process to end: SIGTERM, and SIGHUP of a terminal that went away."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ENDING = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__)
"""Windows has no SIGHUP. Ctrl-C is Python's own KeyboardInterrupt."""


class Interrupted(BaseException):
    """A signal came; raised wherever the main thread is, and past everything that catches errors."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        """What shells give to the signal."""
        return 128 + self.number


def listen(heard: Callable[[int], None], numbers: tuple[int, ...] = ENDING) -> dict[int, Any]:
    """Call `heard` with each of these signals; what handled them before is returned, for `hand_back`.

    Only a main thread can listen. A signal that is ignored (`nohup`) stays ignored, and forked processes end by it.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    own = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() != own:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        _leave_dead_terminal()
        heard(number)

    ignored = {n for n in numbers if n != signal.SIGINT and signal.getsignal(n) is signal.SIG_IGN}
    return {n: signal.signal(n, handle) for n in numbers if n not in ignored}


def hand_back(before: dict[int, Any]) -> None:
    """Give signals to those that handled them before."""
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` in the context when a signal asks for the end.

    Raises:
        Interrupted: a signal came.
    """

    def stop(number: int) -> None:
        raise Interrupted(number)

    before = listen(stop)
    try:
        yield
    finally:
        hand_back(before)


@contextmanager
def postponed() -> Iterator[None]:
    """Let signals wait until the context is left."""
    heard: list[int] = []
    before = listen(heard.append, (*ENDING, signal.SIGINT))
    try:
        yield
    finally:
        hand_back(before)
    if heard:
        os.kill(os.getpid(), heard[0])


def _leave_dead_terminal() -> None:
    """Write to nowhere instead of a terminal that went away: there, every word would be an error."""
    for handle in (1, 2):
        try:
            dead = stat.S_ISCHR(os.fstat(handle).st_mode) and not os.isatty(handle)
        except OSError:
            continue
        if dead:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, handle)
            os.close(nowhere)
