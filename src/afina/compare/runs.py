"""Runs in processes of their own, cached by everything that they depend on.

A run that was finished is never repeated; one that was cut off, was refused or crashed is tried again.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import RLock
from typing import Any

from ..errors import CheckpointError, StoppedError
from ..evidence.prepare import Shared, digest, key_of
from ..plan.usage import told_seconds
from ..train.recipe.sections import Recipe
from ..train.report.events import Progress, Reporter
from ..train.report.results import write_json
from .worker import JOB, MODEL, REFUSED, RESULT

_LOG = "log.txt"
WORKER = (sys.executable, "-m", "afina.compare.worker")
"""What runs a job; the job's folder is its last word."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        status: "done", "refused" (it cannot be run like this), "crashed", or "pruned" (a trial that was going badly).
        result: what was measured; empty unless done.
        error: what went wrong, in a line.
        cached: whether it was found, not run.
        values: (step, loss) of a trial on its way.
    """

    status: str
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    cached: bool = False
    values: tuple[tuple[int, float], ...] = ()


class Runner:
    """Runs jobs below a folder, and tells how long the rest will take.

    Args:
        devices: those of the runs that are made at once, as the processor's name may stand there several times; without
            them one run is made after the other, each where its recipe says.
    """

    def __init__(
        self, folder: Path, shared: Shared, reporter: Reporter, command: Sequence[str] = (),
        devices: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.folder, self.shared, self.reporter, self.command = folder, shared, reporter, command or WORKER
        self.at_once, self.free = max(1, len(devices)), SimpleQueue[str]()
        for device in devices or ("",):
            self.free.put(device)
        self.talking, self.running, self.ended = RLock(), set[subprocess.Popen[str]](), False
        self.planned = 0
        self.finished = 0
        self.seconds: list[float] = []

    def run(
        self, label: str, recipe: Recipe, seed: int, *, trial: bool = False,
        stop: Callable[[int, float], bool] = lambda step, loss: False,
    ) -> Outcome:  # fmt: skip
        """One run of `recipe` with `seed`; a trial is stopped as soon as `stop(step, loss)` says so."""
        placed = self.shared.placed(recipe, seed, Path("unset"), trial=trial)
        key = key_of(placed, self.shared, trial)
        name = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
        folder = (self.folder / f"{name}-{digest(key)}").absolute()
        with self.talking:
            self.finished += 1
            number = self.finished
        if (found := _read(folder / RESULT, key)) is not None:
            return _outcome_of(found)
        folder.mkdir(parents=True, exist_ok=True)
        placed.output.dir = str(folder / MODEL)
        device = self.free.get()
        try:
            placed.model.device = device or placed.model.device  # the key is that of any device of its kind
            job = {"recipe": placed.model_dump(mode="json"), "trial": trial, "key": key, "at_once": self.at_once}
            write_json(folder / JOB, job)
            started = time.monotonic()
            outcome = self._followed(f"{number}/{self.planned} {label}", folder, stop)
        finally:
            self.free.put(device)
        if outcome.status == "pruned":
            values = [list(value) for value in outcome.values]
            write_json(folder / RESULT, {"status": "pruned", "values": values, "key": key})
        with self.talking:
            self.seconds.append(time.monotonic() - started)
            if not self.ended:
                self._tell(f"{number}/{self.planned} {label}", outcome)
        return outcome

    def skip(self) -> None:
        """Count a run that is not to be made."""
        with self.talking:
            self.finished += 1

    def together(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Do all jobs, which call `run`: as many at once as there are devices. If one raises, or a signal comes, the
        others are ended."""
        if self.at_once == 1:
            for job in jobs:
                job()
            return
        with ThreadPoolExecutor(self.at_once) as pool:
            try:
                for done in as_completed([pool.submit(job) for job in jobs]):
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                with self.talking:
                    self.ended = True
                    for process in self.running:
                        process.kill()
                raise

    def _begin(self, folder: Path) -> subprocess.Popen[str]:
        threads = {"OMP_NUM_THREADS": str(self.shared.facts["machine"]["threads"])} if self.at_once > 1 else {}
        with self.talking:
            if self.ended:
                raise StoppedError("the comparison was ended")
            process = _started(self.command, folder, threads)
            self.running.add(process)
        return process

    def _followed(self, label: str, folder: Path, stop: Callable[[int, float], bool]) -> Outcome:
        values: list[tuple[int, float]] = []
        refused, pruned = "", False
        process = self._begin(folder)
        try:
            for event in _events(process):
                if "progress" in event and self.at_once == 1:  # several bars would be none
                    self.reporter.progress(Progress(label, *event["progress"]))
                refused = event.get("refused", refused)
                if "value" in event:
                    step, loss = event["value"]
                    values.append((step, loss))
                    if stop(step, loss):
                        pruned = True
                        break
        finally:  # also when Ctrl-C ends this process: nothing is left running
            if process.poll() is None and (pruned or sys.exc_info()[0] is not None):
                process.kill()
            code = process.wait()
            with self.talking:
                self.running.discard(process)
            if process.stdout is not None:
                process.stdout.close()
        if pruned:
            return Outcome("pruned", values=tuple(values))
        if code == 0:
            return Outcome("done", json.loads((folder / RESULT).read_text(encoding="utf-8")), values=tuple(values))
        if code == REFUSED and refused:
            return Outcome("refused", error=refused)
        return Outcome("crashed", error=_cause(code, folder / _LOG))

    def _tell(self, label: str, outcome: Outcome) -> None:
        left = (self.planned - self.finished) * sum(self.seconds) / len(self.seconds) / self.at_once
        rest = f"; about {told_seconds(left)} left" if self.finished < self.planned else ""
        what = outcome.error or _headline(outcome)
        self.reporter.note(f"{label}: {outcome.status}, {what}{rest}")


def _started(command: Sequence[str], folder: Path, more: Mapping[str, str]) -> subprocess.Popen[str]:
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment = {**os.environ, **quiet, **more}
    with (folder / _LOG).open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            [*command, str(folder)],
            stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True, encoding="utf-8", env=environment,
        )  # fmt: skip


def _events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            yield json.loads(line)


def _read(path: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """A finished run's result.

    Raises:
        CheckpointError: it is the result of something else (two keys with one hash, or an edited file).
    """
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found.get("key") != json.loads(json.dumps(key)):
        raise CheckpointError("a cached run is not what its name says", where=path, fix="delete its folder")
    return found


def _outcome_of(found: dict[str, Any]) -> Outcome:
    values = tuple((int(step), float(loss)) for step, loss in found.get("values", ()))
    return Outcome(found.get("status", "done"), found, cached=True, values=values)


def _cause(code: int, log: Path) -> str:
    """Why a process ended, as far as it can be known."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt|Exit)\b", line)]
    last = (errors or [line for line in lines if line] or ["no message"])[-1]
    return f"{last[:200]} (exit code {code}; all of it in {log})"


def _headline(outcome: Outcome) -> str:
    if outcome.status == "pruned":
        return f"held-out loss {outcome.values[-1][1]:.3f} after {outcome.values[-1][0]} steps"
    result = outcome.result
    if result.get("metric") == "accuracy":
        return f"accuracy {sum(result['items']) / len(result['items']):.3f} in {result['total_s']:.0f} s"
    return f"held-out loss {result['loss']:.3f} in {result['total_s']:.0f} s"
