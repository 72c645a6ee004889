"""Runs that take turns: one works at a time, with random states of its own, until it waits for the others.

Each has a thread, because a run is one long call; but only one of them is ever awake, so that what a process has once
(random states, what accelerate knows of the step) is, to each, what it is alone.
"""

from __future__ import annotations

import contextvars
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...devices.memory_use import free_thread_buffers, one_heap
from ..loop.steps.random_states import random_states, set_random_states


@dataclass(frozen=True)
class Failed:
    """What a run waited for failed."""

    error: BaseException


class Turn:
    """One of the runs.

    Attributes:
        number: its place among them.
        request: what it waits for; None while it works, or once it has ended.
        result: what it gave back.
        error: what ended it.
        ended: whether it has ended.
    """

    def __init__(self, number: int, job: Callable[[], Any]) -> None:
        self.number, self.job = number, job
        self.request: Any = None
        self.answer: Any = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = False
        self._awake, self._asleep = threading.Semaphore(0), threading.Semaphore(0)
        self._random: tuple[Any, ...] | None = None
        self._libraries: list[dict[str, Any]] = []
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True, name=f"run-{number}")

    def _run(self) -> None:
        self._awake.acquire()
        self.work()
        free_thread_buffers()
        self._asleep.release()

    def work(self) -> None:
        """Do the job to its end, in the thread that calls."""
        try:
            self.result = self.job()
        except BaseException as error:
            self.error = error
            traceback.clear_frames(error.__traceback__)  # or what failed would hold its model
        self.ended = True

    def go_on(self, answer: Any = None) -> None:
        """Let it work until it waits or ends; called by who serves them."""
        outside, libraries = random_states(), _library_states()
        if self._random is not None:
            set_random_states(self._random)
            _set_library_states(self._libraries)
        self.request, self.answer = None, answer
        if not self._thread.is_alive() and not self.ended:
            self._thread.start()
        self._awake.release()
        while not self._asleep.acquire(timeout=0.2):  # so that the main thread hears signals
            pass
        self._random, self._libraries = random_states(), _library_states()
        set_random_states(outside)
        _set_library_states(libraries)

    def wait_for(self, request: Any) -> Any:
        """Ask, and sleep until there is an answer; called by the run itself."""
        self.request = request
        free_thread_buffers()  # who works next has use for the memory
        self._asleep.release()
        self._awake.acquire()
        if isinstance(self.answer, Failed):
            raise self.answer.error
        return self.answer


def _shared() -> list[dict[str, Any]]:
    """What accelerate keeps for the whole process: which step of an accumulated batch it is, and the precision."""
    from accelerate.state import AcceleratorState, GradientState

    return [GradientState._shared_state, AcceleratorState._shared_state]


def _library_states() -> list[dict[str, Any]]:
    return [dict(state) for state in _shared()]


def _set_library_states(states: Sequence[dict[str, Any]]) -> None:
    for state, kept in zip(_shared(), states, strict=True):
        state.clear()
        state.update(kept)


def take_turns(turns: Sequence[Turn], serve: Callable[[Sequence[Turn]], dict[Turn, Any]]) -> None:
    """Let runs work by turns until all have ended.

    Args:
        serve: gets those that wait, when nobody works any more; gives answers to some of them, to at least one. What it
            raises, those that wait raise too, so that each gives back what it holds.
    """
    one_heap()
    ready: dict[Turn, Any] = dict.fromkeys(turns)
    while ready:
        for turn, answer in ready.items():
            turn.go_on(answer)
        waiting = [turn for turn in turns if not turn.ended]
        try:
            ready = serve(waiting) if waiting else {}
            free_thread_buffers()
        except BaseException as error:
            for turn in waiting:
                turn.go_on(Failed(error))
            raise
