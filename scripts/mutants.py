"""Which small faults would the tests notice? A sample of one-place changes (cosmic-ray's) of the rooms where silence
costs most is tried on the tests of their rooms; what they let pass is printed.

    python scripts/mutants.py [--sample 60] [--seed 0] [PATH ...]

First the tests of a room run on unchanged code, to learn which lines each of them runs and how long it takes. Then
every change is tried by the tests that run its line, those of the file's mirror first (`core/disk/names.py`:
`tests/core/disk/test_names.py`), up to the first that fails; tests of more than a few seconds, and those that share a
fixture as slow, are left out. Every run is a fork of a process that has the libraries loaded already, with the changed
source in place of the file: nothing on disk is touched.

Left alone is what cannot be noticed where code is right (annotations, asserts, `strict=` and `frozen=`, whether an
argument has to be named) and constants in capitals: a sample of 256 numbers is as good as one of 255.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults import SRC, Changed, Mutant, module_name, mutants

ROOT = SRC.parents[1]
TESTS = ROOT / "tests"
ROOMS = ("core/disk", "core/hosts", "train/data", "train/answers", "evidence/score.py")
LIBRARIES = (
    "torch", "safetensors.torch", "transformers", "transformers.models.llama.modeling_llama", "transformers.trainer",
    "transformers.models.bert.modeling_bert", "transformers.models.t5.modeling_t5", "accelerate",
    "peft", "datasets", "pydantic", "rich.console", "typer", "pytest", "scipy.stats", "numpy", "hypothesis", "regex",
)  # fmt: skip
WORKERS = 2
SLOW = 3.0
"""Seconds above which a test is left out."""
SLACK = 3.0
"""How many times as long as unchanged code a run may take before it counts as hanging, which is noticed."""


@dataclass
class Watch:
    """A plugin of pytest that notes which lines of files each test runs, and how many seconds each takes.

    `lines` has what imports run under "", and what fixtures run under the file of their test.
    """

    files: frozenset[str]
    lines: dict[str, set[tuple[str, int]]] = field(default_factory=lambda: defaultdict(set))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    slow: set[str] = field(default_factory=set)
    now: str = ""

    def trace(self, frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        self.lines[self.now].add((frame.f_code.co_filename, frame.f_lineno))
        return self.trace

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.now = nodeid.partition("::")[0]

    def pytest_runtest_call(self, item: Any) -> None:
        self.now = item.nodeid

    def pytest_runtest_teardown(self, item: Any) -> None:
        self.now = item.nodeid.partition("::")[0]

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.when == "setup" and report.duration > SLOW:  # of a fixture that other tests of the file may share
            self.slow.add(report.nodeid.partition("::")[0])

    def told(self) -> dict[str, Any]:
        """What `Room` takes, as plain values."""
        quick = {n: s for n, s in self.seconds.items() if s < SLOW and n.partition("::")[0] not in self.slow}
        return {"lines": {key: list(ran) for key, ran in self.lines.items()}, "seconds": quick}


@dataclass
class Only:
    """A plugin of pytest that leaves some tests."""

    names: frozenset[str]

    def pytest_collection_finish(self, session: Any) -> None:
        session.items[:] = [item for item in session.items if item.nodeid in self.names]


@dataclass
class Run:
    """Something in a process of its own."""

    pid: int
    end: float

    def outcome(self) -> bool | None:
        """Whether it went well; None while it runs. What takes too long is ended and has not."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status) == 0
        if time.monotonic() > self.end:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return False
        return None

    def wait(self) -> bool:
        while (passed := self.outcome()) is None:
            time.sleep(0.02)
        return passed


def start(work: Callable[[], int], limit: float) -> Run:
    """Do something in a silent fork, which ends with what it returns."""
    pid = os.fork()
    if pid:
        return Run(pid, time.monotonic() + limit)
    os.setsid()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    code = 1
    try:
        code = work()
    finally:
        os._exit(code)


def pytest_run(tests: Sequence[str], plugin: Any) -> int:
    import pytest

    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *tests], plugins=[plugin]))


@dataclass
class Room:
    """The tests of a room: what each runs, and how long it takes; the slow ones are left out."""

    lines: dict[str, set[tuple[str, int]]]
    seconds: dict[str, float]

    @classmethod
    def watched(cls, folder: Path, files: Sequence[Path]) -> Room:
        """Of unchanged code.

        Raises:
            SystemExit: the tests fail, so that nothing can be learnt from them.
        """
        watch = Watch(frozenset(map(str, files)))

        def work() -> int:
            threading.settrace(watch.trace)
            sys.settrace(watch.trace)
            for file in files:
                importlib.import_module(module_name(file))
            code = pytest_run([str(folder)], watch)
            sys.settrace(None)
            Path(report.name).write_text(json.dumps(watch.told()))
            return code

        with tempfile.NamedTemporaryFile() as report:
            if not start(work, 1800).wait():
                raise SystemExit(f"the tests fail on unchanged code: {folder}")
            told = json.loads(Path(report.name).read_text())
        return cls({k: set(map(tuple, v)) for k, v in told["lines"].items()}, told["seconds"])

    def tests(self, mutant: Mutant) -> list[str]:
        """The names of the tests that run what is changed, those of the file's mirror first."""
        changed = {(str(mutant.path), line) for line in mutant.lines()}
        ran = {key for key, lines in self.lines.items() if lines & changed}
        names = [n for n in self.seconds if ran & {"", n, n.partition("::")[0]}]
        return sorted(names, key=lambda n: f"/test_{mutant.path.stem}.py::" not in n)

    def run(self, names: Sequence[str], mutant: Mutant) -> Run:
        """Some of the tests, with the mutant in place of its file."""

        def work() -> int:
            sys.meta_path.insert(0, Changed(mutant))
            return pytest_run(list(dict.fromkeys(n.partition("::")[0] for n in names)), Only(frozenset(names)))

        return start(work, 15 + SLACK * sum(self.seconds[n] for n in names))

    def check(self, mutants: Sequence[Mutant]) -> None:
        """See that the tests pass where some of them run on unchanged code, imported as a changed one is.

        Raises:
            SystemExit: they do not.
        """
        for mutant in mutants:
            names = self.tests(mutant)
            if names and not self.run(names, Mutant(mutant.path, mutant.path.read_text())).wait():
                raise SystemExit(f"some of the tests fail where not all of them run: {', '.join(names)}")


def lived(room: Room, sample: Sequence[Mutant]) -> Iterator[Mutant]:
    """Those that no test notices."""
    running: list[tuple[Run, Mutant]] = []
    left = list(sample)
    while running or left:
        while left and len(running) < WORKERS:
            mutant = left.pop()
            names = room.tests(mutant)
            if names:
                running.append((room.run(names, mutant), mutant))
            else:
                yield mutant
        time.sleep(0.02)
        for pair in list(running):
            passed = pair[0].outcome()
            if passed is not None:
                running.remove(pair)
                if passed:
                    yield pair[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", default=ROOMS, help="files or folders below src/afina")
    parser.add_argument("--sample", type=int, default=60, help="how many of each room")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
    for library in LIBRARIES:
        importlib.import_module(library)
    import torch

    torch.set_num_threads(1)
    found = [p for q in given.paths for p in ([SRC / q] if q.endswith(".py") else sorted((SRC / q).glob("*.py")))]
    rooms = defaultdict[Path, list[Path]](list)
    for path in found:
        if path.name != "__init__.py":
            rooms[path.parent.relative_to(SRC)].append(path)
    for inside, files in rooms.items():
        begun = time.monotonic()
        room = Room.watched(TESTS / inside, files)
        drawn = mutants(files, random.Random(f"{given.seed}:{inside}"))
        sample = [mutant for mutant, _ in zip(drawn, range(given.sample), strict=False)]
        room.check(sample[:3])
        alive = 0
        for mutant in lived(room, sample):
            alive += 1
            print(f"{mutant.path.relative_to(SRC)}\n    " + mutant.change.replace("\n", "\n    "), flush=True)
        dead, seconds = len(sample) - alive, time.monotonic() - begun
        print(
            f"{inside}: {dead} of {len(sample)} noticed ({dead / max(1, len(sample)):.1%}), {seconds:.0f} s", flush=True
        )


if __name__ == "__main__":
    main()
