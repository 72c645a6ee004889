"""Processes that make runs: each does one job after the other on a base that it has loaded once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import StoppedError

WORKER = (sys.executable, "-m", "afina.compare.worker")
"""What does jobs; their folders are the lines that it reads."""
_LOG = "log.txt"


class Hand:
    """One such process, begun when there is a job for it.

    Args:
        command: what is run.
        device: where its runs are; empty for where each recipe says.
        log: file for what it says beside its events.
        threads: what it may take of the processor's; as it likes without.
    """

    def __init__(self, command: Sequence[str], device: str, log: Path, threads: int | None) -> None:
        self.command, self.device, self.log, self.threads = command, device, log, threads
        self.process: subprocess.Popen[str] | None = None
        self.ended = False

    def do(self, folder: Path, hear: Callable[[Mapping[str, Any]], None]) -> tuple[str, str]:
        """A job's status, "done", "refused" or "crashed", and what went wrong.

        Args:
            hear: gets its events.
        """
        began = self.log.stat().st_size if self.process is not None else 0
        process = self._begun()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{folder}\n")
            process.stdin.flush()
        except BrokenPipeError:  # its end will say why
            pass
        for line in process.stdout:
            if not line.startswith("{"):
                continue
            event = json.loads(line)
            if "ended" in event:
                return ("refused", event["ended"]) if event["ended"] else ("done", "")
            hear(event)
        code = process.wait()
        self.end()
        with self.log.open(encoding="utf-8", errors="replace") as log:
            log.seek(began)
            (folder / _LOG).write_text(log.read(), encoding="utf-8")
        return "crashed", _cause(code, folder / _LOG)

    def _begun(self) -> subprocess.Popen[str]:
        if self.ended:
            raise StoppedError("the comparison was ended")
        if self.process is None:
            quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            own = {"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("w", encoding="utf-8") as log:
                self.process = subprocess.Popen(
                    self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                    encoding="utf-8", env={**os.environ, **quiet, **own},
                )  # fmt: skip
        return self.process

    def end(self, *, for_good: bool = False) -> None:
        """End the process, if there is one; for good, so that no other is begun."""
        self.ended = self.ended or for_good
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()  # what it has done is written
        process.wait()
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe is not None and not for_good:  # somebody may be reading it
                    pipe.close()
            except OSError:
                pass


def _cause(code: int, log: Path) -> str:
    """Why a process ended, as far as it can be known."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt|Exit)\b", line)]
    last = (errors or [line for line in lines if line] or ["no message"])[-1]
    return f"{last[:200]} (exit code {code}; all of it in {log})"
