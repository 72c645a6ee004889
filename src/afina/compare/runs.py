"""Runs in processes beside this one, cached by everything that they depend on.

A run that was finished is never repeated; one that was cut off, was refused or crashed is tried again.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import RLock
from typing import Any

from ..errors import CheckpointError
from ..evidence.prepare import Shared, digest, key_of
from ..plan.usage import told_seconds
from ..train.recipe.sections import Recipe
from ..train.report.events import Progress, Reporter
from ..train.report.results import write_json
from .hands import WORKER, Hand
from .worker import JOB, MODEL, RESULT


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        status: "done", "refused" (it cannot be run like this) or "crashed".
        result: what was measured; empty unless done.
        error: what went wrong, in a line.
        cached: whether it was found, not run.
    """

    status: str
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    cached: bool = False


class Runner:
    """Runs jobs below a folder, and tells how long the rest will take.

    Args:
        devices: those of the runs that are made at once, as the processor's name may stand there several times; without
            them one run is made after the other, each where its recipe says.
        separate: whether each run has a process of its own, with a base of its own.
    """

    def __init__(
        self, folder: Path, shared: Shared, reporter: Reporter, command: Sequence[str] = (),
        devices: Sequence[str] = (), *, separate: bool = False,
    ) -> None:  # fmt: skip
        self.folder, self.shared, self.reporter, self.separate = folder, shared, reporter, separate
        self.at_once, self.free = max(1, len(devices)), SimpleQueue[Hand]()
        threads = shared.facts["machine"]["threads"] if self.at_once > 1 else None
        self.hands = [Hand(command or WORKER, device, folder / f"worker-{number}.txt", threads)
                      for number, device in enumerate(devices or ("",))]  # fmt: skip
        for hand in self.hands:
            self.free.put(hand)
        self.talking, self.ended = RLock(), False
        self.planned = 0
        self.finished = 0
        self.seconds: list[float] = []

    def run(self, label: str, recipe: Recipe, seed: int) -> Outcome:
        """One run of `recipe` with `seed`."""
        placed = self.shared.placed(recipe, seed, Path("unset"))
        key = key_of(placed, self.shared, False)
        name = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
        folder = (self.folder / f"{name}-{digest(key)}").absolute()
        with self.talking:
            self.finished += 1
            number = self.finished
        found = _read(folder / RESULT, key)
        if found is not None and (found.get("separate", True) or not self.separate):
            return Outcome("done", found, cached=True)
        folder.mkdir(parents=True, exist_ok=True)
        placed.output.dir = str(folder / MODEL)
        hand = self.free.get()
        started = time.monotonic()
        try:
            placed.model.device = hand.device or placed.model.device  # the key is that of any device of its kind
            write_json(folder / JOB, {"recipe": placed.model_dump(mode="json"), "key": key, "at_once": self.at_once,
                                      "separate": self.separate})  # fmt: skip
            outcome = self._followed(f"{number}/{self.planned} {label}", hand, folder)
            if self.separate:
                hand.end()
        except BaseException:  # also when Ctrl-C ends this process: nothing is left running
            hand.end()
            raise
        finally:
            self.free.put(hand)
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
        others are ended; no process is left."""
        try:
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
                        for hand in self.hands:
                            hand.end(for_good=True)
                    raise
        finally:
            self.close()

    def close(self) -> None:
        """End the processes, which wait for other jobs."""
        for hand in self.hands:
            hand.end()

    def _followed(self, label: str, hand: Hand, folder: Path) -> Outcome:
        def hear(event: Mapping[str, Any]) -> None:
            if "progress" in event and self.at_once == 1:  # several bars would be none
                self.reporter.progress(Progress(label, *event["progress"]))

        status, error = hand.do(folder, hear)
        result = json.loads((folder / RESULT).read_text(encoding="utf-8")) if status == "done" else {}
        return Outcome(status, result, error)

    def _tell(self, label: str, outcome: Outcome) -> None:
        left = (self.planned - self.finished) * sum(self.seconds) / len(self.seconds) / self.at_once
        rest = f"; about {told_seconds(left)} left" if self.finished < self.planned else ""
        what = outcome.error or _headline(outcome.result)
        self.reporter.note(f"{label}: {outcome.status}, {what}{rest}")


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


def _headline(result: Mapping[str, Any]) -> str:
    if result.get("metric") == "accuracy":
        return f"accuracy {sum(result['items']) / len(result['items']):.3f} in {result['total_s']:.0f} s"
    return f"held-out loss {result['loss']:.3f} in {result['total_s']:.0f} s"
