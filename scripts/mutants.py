"""Which small faults would the tests notice? A sample of one-place changes (cosmic-ray's) of the rooms where silence
costs most is tried on the tests of each file; what they let pass is printed.

    python scripts/mutants.py [--minutes 60] [--seed 0] [PATH ...]

Every run is a fork of a process that has the libraries loaded already, with the changed source in place of the file:
nothing on disk is touched. A file's tests are its mirror (`core/disk/names.py`: `tests/core/disk/test_names.py`), and
then those of its room. Constants in capitals are left alone: a sample of 256 numbers is as good as one of 255.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import importlib
import importlib.abc
import importlib.machinery
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
SLACK = 3.0
"""How many times as long as unchanged code a run may take before it counts as hanging, which is noticed."""


@dataclass(frozen=True)
class Mutant:
    """One changed place of a file."""

    path: Path
    operator: str
    source: str

    @property
    def change(self) -> str:
        """The changed lines."""
        lines = difflib.unified_diff(self.path.read_text().splitlines(), self.source.splitlines(), lineterm="", n=0)
        return "\n".join(line for line in lines if not line.startswith(("---", "+++")))


class _Bare(ast.NodeTransformer):
    """Without what has no effect at run time, annotations and docstrings, and without constants."""

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if all(isinstance(t, ast.Name) and t.id.isupper() for t in node.targets):
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

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)


def _meaning(source: str) -> str:
    return ast.dump(_Bare().visit(ast.parse(source)))


def mutants(path: Path, draw: random.Random) -> Iterator[Mutant]:
    """Mutants of a file in random order, one for each place that can be changed."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    code = path.read_text(encoding="utf-8")
    tree, places = get_ast(code), dict[tuple[Any, Any], list[tuple[str, int]]]()
    for name in sorted(n for n in operator_names() if n.startswith("core/")):
        try:
            operator = get_operator(name)()
        except TypeError:  # it wants arguments of its own
            continue
        found = (place for node in ast_nodes(tree) for place in operator.mutation_positions(node))
        for number, place in enumerate(found):
            places.setdefault(tuple(place), []).append((name, number))
    plain = _meaning(code)
    for options in draw.sample(list(places.values()), len(places)):
        name, number = draw.choice(options)
        source = mutate_code(code, get_operator(name)(), number)
        if source is None:
            continue
        with contextlib.suppress(SyntaxError):
            if _meaning(source) != plain:
                yield Mutant(path, name.removeprefix("core/"), source)


def tests_of(path: Path) -> list[str]:
    """The test files that are there for a file."""
    inside = path.relative_to(SRC)
    mirror = TESTS / inside.parent / f"test_{inside.stem}.py"
    return [*([str(mirror)] if mirror.is_file() else []), str(TESTS / inside.parent)]


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from a changed source."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, str(path), source

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        own = fullname == self.name
        return importlib.machinery.ModuleSpec(fullname, self, origin=self.path) if own else None

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str) -> bytes:
        return self.source.encode()


@dataclass
class Run:
    """Tests in a process of their own."""

    pid: int
    started: float
    limit: float

    def outcome(self) -> bool | None:
        """Whether the tests passed; None while they run. What takes too long is ended and has not passed."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status) == 0
        if time.monotonic() - self.started > self.limit:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return False
        return None


def start(tests: Sequence[str], limit: float, mutant: Mutant | None = None) -> Run:
    """Run tests in a fork; `mutant` takes the place of its file there."""
    pid = os.fork()
    if pid:
        return Run(pid, time.monotonic(), limit)
    os.setsid()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    if mutant is not None:
        name = ".".join(mutant.path.relative_to(SRC.parent).with_suffix("").parts)
        sys.meta_path.insert(0, _Changed(name, mutant.path, mutant.source))
    import pytest

    os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *tests])))


def baseline(tests: Sequence[str]) -> float:
    """Seconds that the tests take on unchanged code.

    Raises:
        SystemExit: they fail, so that nothing can be learnt from them.
    """
    run = start(tests, 600)
    while (passed := run.outcome()) is None:
        time.sleep(0.05)
    if not passed:
        raise SystemExit(f"the tests fail on unchanged code: {', '.join(tests)}")
    return time.monotonic() - run.started


def killed(path: Path, minutes: float, draw: random.Random) -> tuple[int, list[Mutant]]:
    """(how many were tried, those that lived), in about so many minutes."""
    tests = tests_of(path)
    seconds = baseline(tests)
    end, waiting = time.monotonic() + 60 * minutes, mutants(path, draw)
    running: list[tuple[Run, Mutant]] = []
    tried, lived, more = 0, [], True
    while running or more:
        while more and len(running) < WORKERS:
            mutant = next(waiting, None) if time.monotonic() < end else None
            more = mutant is not None
            if mutant is not None:
                running.append((start(tests, 10 + SLACK * seconds, mutant), mutant))
        time.sleep(0.02)
        for pair in list(running):
            passed = pair[0].outcome()
            if passed is not None:
                running.remove(pair)
                tried += 1
                lived += [pair[1]] if passed else []
    return tried, lived


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", default=ROOMS, help="files or folders below src/afina")
    parser.add_argument("--minutes", type=float, default=60, help="for all of it")
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
    files = [p for p in found if p.name != "__init__.py"]
    weights = [len(p.read_text().splitlines()) for p in files]
    total = dead = 0
    for path, weight in zip(files, weights, strict=True):
        tried, lived = killed(path, given.minutes * weight / sum(weights), random.Random(f"{given.seed}:{path.name}"))
        total, dead = total + tried, dead + tried - len(lived)
        share = f"{(tried - len(lived)) / tried:.0%}" if tried else "-"
        print(f"{path.relative_to(SRC)}: {tried - len(lived)} of {tried} noticed ({share})", flush=True)
        for mutant in lived:
            print("    " + mutant.change.replace("\n", "\n    "), flush=True)
    print(f"{dead} of {total} noticed ({dead / max(total, 1):.1%})")


if __name__ == "__main__":
    main()
