"""The rules of the house: imports run down, in no circle; few files a folder; one name, one meaning; readable files."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
ROOT = SRC / "afina"

# From the ground floor up: a room knows only those before it. A name stands for a file or for a folder.
FLOORS = (
    "version", "errors", "cache", "devices", "core", "kernels", "methods", "layerwise", "optimizers", "plan", "compat",
    "recipes", "train", "export", "evidence", "tune", "compare", "cli",
)  # fmt: skip
ROOMS = {
    "core": ("files", "registry", "validate", "config", "caches", "by_name", "layers", "prompts", "hosts", "inject",
             "disk", "combine", "model"),
    "train": ("report", "recipe", "base", "conversations", "data", "answers", "tasks", "loop", "fleet", "use"),
}  # fmt: skip
MOST_FILES, MOST_LINES = 14, 300
# One file for each method, and for each command.
CROWDED = {"methods/selective", "methods/additive", "methods/prompt", "methods/reparam", "methods/initialisers", "cli"}
# Means the same wherever it stands; or the backends of one operation.
SHARED_NAMES = {"__init__", "__main__", "base", "config"}
BACKENDS = ("kernels/", "kernels/cpu/", "kernels/cpu/native/", "kernels/cuda/")


def name_of(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all within it, but for what only type checkers read."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not _is_for_types(child):
            yield from _running(child)


def imported(path: Path) -> set[str]:
    """The files of afina that a file imports anywhere in it."""
    parts = name_of(path).split(".")
    package = parts if path.name == "__init__.py" else parts[:-1]
    found: set[str] = set()
    for node in _running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{module}.{a.name}" if f"{module}.{a.name}" in FILES else module for a in node.names}
    return {name for name in found if name in FILES}


IMPORTS = {name: imported(path) for name, path in FILES.items()}


def circles() -> list[list[str]]:
    """The sets of files that import each other (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    out: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in IMPORTS[name]:
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            members = stack[stack.index(name) :]
            del stack[-len(members) :]
            if len(members) > 1:
                out.append(sorted(members))

    for name in IMPORTS:
        if name not in order:
            visit(name)
    return out


def floor(name: str, rooms: tuple[str, ...], depth: int) -> int | None:
    """On which floor a file stands, of the rooms at this depth; None for a folder's own `__init__` and `__main__`."""
    parts = name.split(".")
    return rooms.index(parts[depth]) if len(parts) > depth and parts[depth] != "__main__" else None


def climbs(rooms: tuple[str, ...], within: str) -> list[str]:
    """Imports among these rooms that do not run down."""
    prefix = f"afina.{within}." if within else "afina."
    depth = prefix.count(".")
    out = []
    for name, others in IMPORTS.items():
        for other in others:
            if name.startswith(prefix) and other.startswith(prefix):
                here, there = floor(name, rooms, depth), floor(other, rooms, depth)
                if here is not None and there is not None and there > here:
                    out.append(f"{name} imports {other}")
    return sorted(out)


def test_no_files_import_each_other_in_a_circle() -> None:
    assert not circles(), "\n".join(" <-> ".join(c) for c in circles())


@pytest.mark.parametrize(("within", "rooms"), [("", FLOORS), *ROOMS.items()])
def test_imports_run_down_the_house(within: str, rooms: tuple[str, ...]) -> None:
    climbing = climbs(rooms, within)
    assert not climbing, "\n".join(climbing)


def test_every_folder_of_code_is_a_package() -> None:
    assert not [p for p in {f.parent for f in ROOT.rglob("*.py")} if not (p / "__init__.py").is_file()]


@pytest.mark.parametrize(("within", "rooms"), [("", FLOORS), *ROOMS.items()])
def test_every_room_has_its_floor(within: str, rooms: tuple[str, ...]) -> None:
    there = {p.stem if p.is_file() else p.name for p in (ROOT / within).iterdir()
             if p.suffix == ".py" or (p.is_dir() and any(p.rglob("*.py")))}  # fmt: skip
    assert there - {"__init__", "__main__", "__pycache__"} == set(rooms)


def test_the_drawing_would_show_a_climb() -> None:
    """The rule is no empty one: without the topmost room's floor something climbs."""
    assert climbs(tuple(reversed(FLOORS)), "")


def test_folders_hold_few_files() -> None:
    counts = Counter(p.parent.relative_to(ROOT).as_posix() for p in FILES.values() if p.name != "__init__.py")
    full = {folder: n for folder, n in counts.items() if n > MOST_FILES and folder not in CROWDED}
    assert not full, full


def test_one_name_has_one_meaning() -> None:
    places: dict[str, list[str]] = {}
    for path in FILES.values():
        places.setdefault(path.stem, []).append(path.relative_to(ROOT).as_posix())
    twice = {
        stem: found
        for stem, found in places.items()
        if len(found) > 1
        and stem not in SHARED_NAMES
        and not all(p.removesuffix(f"{stem}.py") in BACKENDS for p in found)
    }
    assert not twice, twice


def test_files_can_be_read_in_one_go() -> None:
    long = {p.relative_to(ROOT).as_posix(): n for p in FILES.values()
            if (n := len(p.read_text(encoding="utf-8").splitlines())) > MOST_LINES}  # fmt: skip
    assert not long, long


@pytest.mark.parametrize("path", [p for p in FILES.values() if p.name == "__init__.py"], ids=name_of)
def test_every_room_says_what_it_is_for(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text, f"{path.relative_to(ROOT)} has no docstring"
