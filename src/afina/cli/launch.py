"""`--processes N`: the same command in N processes, and what happens when one of them ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import typer

from ..devices.place import apart
from ..devices.ranks import LAUNCHER
from ..errors import RecipeError
from ..train.report.interrupts import ENDING, hand_back, listen, postponed

PATIENCE = 5.0
"""Seconds that the others get to end by themselves when one has died; they cannot finish a step without it."""
_TOLD = 4
"""Lines of a process's last words."""
_RESUME = "the same command with --resume goes on from the newest checkpoint, if there is one"


@dataclass
class Started:
    """One of the processes; the first one speaks for all, the words of the others are kept."""

    process: subprocess.Popen[bytes]
    words: IO[bytes] | None

    def last_words(self) -> list[str]:
        """What it said at its end: its error, else the last line of its traceback and what follows."""
        if self.words is None:
            return []
        self.words.seek(0)
        lines = [line for line in self.words.read().decode(errors="replace").splitlines() if line.strip()]
        begin = next((i for i in reversed(range(len(lines))) if lines[i].startswith("error: ")), len(lines) - 2)
        return lines[max(begin, 0) :][:_TOLD]


def launch(command: Sequence[str], processes: int, device: str, fix: str = _RESUME) -> int:
    """Run `afina COMMAND` in so many processes on this machine, which share one run.

    A signal that asks for the end goes on to all of them.

    Args:
        device: `model.device` of the recipe.
        fix: what to do when one of them has died.

    Returns:
        The exit code: that of the first process to end otherwise than well.

    Raises:
        RecipeError: there are fewer devices, or others started this process together with more already.
    """
    _check(processes, device)
    port = _free_port()
    running: list[Started] = []

    def pass_on(number: int) -> None:
        for one in running:
            one.process.send_signal(number)

    before = listen(pass_on, (*ENDING, signal.SIGINT))
    try:
        with postponed():
            running.extend(_start(command, number, processes, port) for number in range(processes))
        return _watch(running, fix)
    finally:
        hand_back(before)
        for one in running:
            one.process.kill()  # nothing is left behind; those that ended do not notice


def _check(processes: int, device: str) -> None:
    if processes < 1:
        raise RecipeError("a run has at least one process", where="--processes", got=processes)
    if "WORLD_SIZE" in os.environ:
        others = f"nothing: torchrun, accelerate or srun started {os.environ['WORLD_SIZE']}"
        raise RecipeError("this process is one of several already", where="--processes", got=processes,
                          expected=others)  # fmt: skip
    apart(device, processes, "--processes")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(command: Sequence[str], number: int, processes: int, port: int) -> Started:
    threads = max(1, (os.cpu_count() or 1) // processes)
    own = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, LAUNCHER: os.getpid()}  # fmt: skip
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, **{k: str(v) for k, v in own.items()}}
    words: IO[bytes] | None = None if number == 0 else tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long
    streams: dict[str, Any] = {} if words is None else {"stdout": subprocess.DEVNULL, "stderr": words}
    # In a session of its own: a Ctrl-C of the terminal would reach it twice, and the second one ends at once.
    process = subprocess.Popen([sys.executable, "-m", "afina", *command], env=environment, start_new_session=True,
                               stdin=subprocess.DEVNULL, **streams)  # fmt: skip
    return Started(process, words)


def _watch(running: Sequence[Started], fix: str = _RESUME) -> int:
    """Until all have ended; if one dies, the others are ended soon."""
    dead: int | None = None
    deadline = float("inf")
    while any(one.process.poll() is None for one in running) and time.monotonic() < deadline:
        if dead is None:
            dead = next((i for i, one in enumerate(running) if one.process.poll() not in (None, 0)), None)
            deadline = deadline if dead is None else time.monotonic() + PATIENCE
        time.sleep(0.05)
    if dead is None:
        dead = next((i for i, one in enumerate(running) if one.process.poll() != 0), None)
    if dead is None:
        return 0
    code = running[dead].process.returncode
    if code < 0 or running[0].process.returncode != code:  # else the first one has told it
        _tell(running[dead], dead, len(running), code, fix)
    return 128 - code if code < 0 else code


def _tell(one: Started, number: int, of: int, code: int, fix: str) -> None:
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    typer.echo(f"process {number} of {of} died ({how}); the others were ended", err=True)
    for line in one.last_words():
        typer.echo(f"  {line}", err=True)
    typer.echo(f"fix: {fix}", err=True)
