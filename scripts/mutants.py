"""Which small faults would the tests notice? A sample of one-place changes (cosmic-ray's) of the rooms where silence
costs most is tried on the tests of their rooms; what they let pass is printed.

    python scripts/mutants.py [--sample 60] [--seed 0] [PATH ...]

First the tests of a room run on unchanged code, to learn which lines each of them runs and how long it takes. Then
every change is tried by the tests that run its line, those of the file's mirror first (`core/disk/names.py`:
`tests/core/disk/test_names.py`), up to the first that fails; tests of more than a few seconds are left out. Every run
is a fork of a process that has the libraries loaded already, with the changed source in place of the file: nothing on
disk is touched. Constants in capitals are left alone: a sample of 256 numbers is as good as one of 255.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import importlib
import importlib.abc
import importlib.machinery
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

ROOT = Path(__file__).resolve().parents[1]
SRC, TESTS = ROOT / "src" / "afina", ROOT / "tests"
ROOMS = ("core/disk", "core/hosts", "train/data", "train/answers", "compare/score.py")
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


@dataclass(frozen=True)
class Mutant:
    """One changed place of a file."""

    path: Path
    source: str

    @property
    def change(self) -> str:
        """The changed lines."""
        lines = difflib.unified_diff(self.path.read_text().splitlines(), self.source.splitlines(), lineterm="", n=0)
        return "\n".join(line for line in lines if not line.startswith(("---", "+++")))

    def lines(self) -> set[int]:
        """The lines of the statement that is changed; of a compound one those of its head."""
        plain = self.path.read_text()
        pairs = difflib.SequenceMatcher(None, plain.splitlines(), self.source.splitlines(), autojunk=False)
        first = next(max(start + 1, end) for tag, start, end, _, _ in pairs.get_opcodes() if tag != "equal")
        best: set[int] = set()
        for node in ast.walk(ast.parse(plain)):
            if isinstance(node, (ast.stmt, ast.ExceptHandler)):
                start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
                body = getattr(node, "body", None)
                end = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or start
                if start <= first <= end and (not best or end - start < len(best)):
                    best = set(range(start, end + 1))
        return best or {first}


class _Bare(ast.NodeTransformer):
    """Without what has no effect at run time, annotations and docstrings, and without constants."""

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if all(isinstance(n, (ast.Tuple, ast.expr_context)) or (isinstance(n, ast.Name) and n.id.isupper()) for t in node.targets for n in ast.walk(t)):
            node.value = ast.Constant(None)
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        node.args, node.posonlyargs, node.kwonlyargs = [*node.posonlyargs, *node.args, *node.kwonlyargs], [], []
        node.defaults, node.kw_defaults = [*node.defaults, *(d for d in node.kw_defaults if d is not None)], []
        return self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> None:
        return None

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.keywords = [k for k in node.keywords if k.arg not in ("strict", "frozen")]
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)


def _meaning(source: str) -> str:
    return ast.dump(_Bare().visit(ast.parse(source)))


def mutants(paths: Sequence[Path], draw: random.Random) -> Iterator[Mutant]:
    """Mutants of files in random order, one for each place that can be changed."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    places = dict[tuple[Any, ...], list[tuple[str, int]]]()
    for path in paths:
        tree = get_ast(path.read_text(encoding="utf-8"))
        for name in sorted(n for n in operator_names() if n.startswith("core/")):
            try:
                operator = get_operator(name)()
            except TypeError:  # it wants arguments of its own
                continue
            found = (place for node in ast_nodes(tree) for place in operator.mutation_positions(node))
            for number, place in enumerate(found):
                places.setdefault((path, *place), []).append((name, number))
    for (path, *_), options in draw.sample(list(places.items()), len(places)):
        name, number = draw.choice(options)
        plain = path.read_text(encoding="utf-8")
        source = mutate_code(plain, get_operator(name)(), number)
        with contextlib.suppress(SyntaxError):
            if source is not None and _meaning(source) != _meaning(plain):
                yield Mutant(path, source)


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from a changed source."""

    def __init__(self, mutant: Mutant) -> None:
        self.name, self.path, self.source = _module(mutant.path), str(mutant.path), mutant.source

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        own = fullname == self.name
        return importlib.machinery.ModuleSpec(fullname, self, origin=self.path) if own else None

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str) -> bytes:
        return self.source.encode()


def _module(path: Path) -> str:
    return ".".join(path.relative_to(SRC.parent).with_suffix("").parts)


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
    silent = os.open(os.environ.get("MUT_LOG", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    code = 1
    try:
        code = work()
    except BaseException:
        import traceback
        traceback.print_exc()
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
                importlib.import_module(_module(file))
            code = pytest_run([str(folder)], watch)
            sys.settrace(None)
            told = {k: list(v) for k, v in watch.lines.items()}
            Path(report.name).write_text(json.dumps([told, {n: s for n, s in watch.seconds.items() if s < SLOW and n.partition('::')[0] not in watch.slow}]))
            return code

        with tempfile.NamedTemporaryFile() as report:
            if not start(work, 1800).wait():
                raise SystemExit(f"the tests fail on unchanged code: {folder}")
            lines, seconds = json.loads(Path(report.name).read_text())
        return cls({k: {(f, n) for f, n in v} for k, v in lines.items()},
                   seconds)  # fmt: skip

    def tests(self, mutant: Mutant) -> list[str]:
        """The names of the tests that run what is changed, those of the file's mirror first."""
        changed = {(str(mutant.path), line) for line in mutant.lines()}
        ran = {key for key, lines in self.lines.items() if lines & changed}
        names = [n for n in self.seconds if ran & {"", n, n.partition("::")[0]}]
        return sorted(names, key=lambda n: f"/test_{mutant.path.stem}.py::" not in n)

    def run(self, names: Sequence[str], mutant: Mutant) -> Run:
        """Some of the tests, with the mutant in place of its file."""

        def work() -> int:
            sys.meta_path.insert(0, _Changed(mutant))
            return pytest_run(list(dict.fromkeys(n.partition("::")[0] for n in names)), Only(frozenset(names)))

        return start(work, 15 + SLACK * sum(self.seconds[n] for n in names))


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
        if not all(room.run(room.tests(m), Mutant(m.path, m.path.read_text())).wait() for m in sample[:3] if room.tests(m)):
            raise SystemExit(f"{inside}: some of the tests fail where not all of them run")
        alive = 0
        for mutant in lived(room, sample):
            alive += 1
            print(f"{mutant.path.relative_to(SRC)}\n    " + mutant.change.replace("\n", "\n    "), flush=True)
        dead, seconds = len(sample) - alive, time.monotonic() - begun
        print(f"{inside}: {dead} of {len(sample)} noticed ({dead / max(1, len(sample)):.1%}), {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
