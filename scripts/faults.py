"""One-place faults of a source file (cosmic-ray's), and the import of a file with one in it."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.abc
import importlib.machinery
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SRC = Path(__file__).resolve().parents[1] / "src" / "afina"


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
        named = [n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        if all(name.isupper() for name in named):
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


class Changed(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from a changed source."""

    def __init__(self, mutant: Mutant) -> None:
        self.name, self.path, self.source = module_name(mutant.path), str(mutant.path), mutant.source

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        own = fullname == self.name
        return importlib.machinery.ModuleSpec(fullname, self, origin=self.path) if own else None

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str) -> bytes:
        return self.source.encode()


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SRC.parent).with_suffix("").parts)
