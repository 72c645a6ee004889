"""Libraries that looked for `peft` before the stand-in came: their names for it get afina's objects.

A library that found the real package holds its classes and modules; one that found none left its imports out. Both are
made good in the library's own modules; the user's are not touched: who imports the real package means it.
"""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

LIBRARIES = ("transformers", "trl", "accelerate", "diffusers", "sentence_transformers")
"""They are libraries wherever they are installed; so is whatever lies among the installed packages."""
_FLAGS = ("_peft_available", "USE_PEFT_BACKEND")
"""What libraries remember of whether there is a `peft`; diffusers is the one that copies it into module constants."""
_VERSION = "_peft_version"


def real_peft() -> dict[str, ModuleType]:
    """The modules of the real package that are imported."""
    found = {n: m for n, m in list(sys.modules.items()) if _is_of_peft(n) and isinstance(m, ModuleType)}
    return {n: m for n, m in found.items() if getattr(m, "__file__", None)}


def users() -> list[str]:
    """Who uses the real package in this process: modules that are no libraries, and what libraries made with it."""
    if not real_peft():
        return []
    holding = [m.__name__ for m in _modules() if not _is_library(m) and any(True for _ in _held(m))]
    made = {type(o).__name__ for o in gc.get_objects() if _was_made(type(o))}
    return [*dict.fromkeys(holding), *(f"a live {name}" for name in sorted(made))]


def rebind(real: dict[str, ModuleType], version: str) -> list[str]:
    """Give libraries the stand-in's objects, which `sys.modules` has by now, in the places of the real ones.

    Returns:
        The names that the stand-in does not have; they stay.
    """
    left = []
    for module in _modules():
        for cached in (v for k, v in list(vars(module).items()) if "is_peft" in k and hasattr(v, "cache_clear")):
            cached.cache_clear()
        for name, value in list(_held(module)) if real and _is_library(module) else ():
            ours = _counterpart(value)
            if ours is None:
                left.append(f"{module.__name__}.{name}")
            else:
                setattr(module, name, ours)
        if not real and _is_library(module) and any("peft" in k.lower() for k in vars(module)):
            _import_late(module, version)
    return left


def _modules() -> Iterator[ModuleType]:
    return (m for n, m in list(sys.modules.items()) if type(m).__name__ != "StandIn" and isinstance(m, ModuleType)
            and not _is_of_peft(n) and n.partition(".")[0] != "afina")  # fmt: skip


def _is_of_peft(name: object) -> bool:
    return isinstance(name, str) and name.partition(".")[0] == "peft"


def _is_library(module: ModuleType) -> bool:
    if module.__name__.partition(".")[0] in LIBRARIES:
        return True
    file = vars(module).get("__file__") or ""
    return any(file.startswith(sysconfig.get_path(p)) for p in ("purelib", "platlib", "stdlib"))


def _held(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The module's names for objects of the real package."""
    for name, value in list(vars(module).items()):
        kind = type(value)  # not `isinstance`, which asks the value: some of torch's warn whoever does
        of = value.__name__ if issubclass(kind, ModuleType) else None
        if issubclass(kind, (type, FunctionType)):
            of = value.__module__
        if _is_of_peft(of) and kind.__name__ != "StandIn":
            yield name, value


def _was_made(kind: type) -> bool:
    """Whether objects of this class are models, layers or configs of the real package."""
    of_peft = (c for c in kind.__mro__ if _is_of_peft(vars(c).get("__module__")))
    return any(c.__name__ in ("PeftConfigMixin", "PeftModel", "BaseTuner", "BaseTunerLayer") for c in of_peft)


def _counterpart(value: Any) -> Any:
    if isinstance(value, ModuleType):
        return sys.modules.get(value.__name__)
    for module in (sys.modules.get(value.__module__), sys.modules["peft"]):
        found = getattr(module, value.__name__, None)
        if found is not None:
            return found
    return None


def _import_late(module: ModuleType, version: str) -> None:
    """Run the imports that a library left out because there was no `peft`."""
    for flag in _FLAGS:
        if vars(module).get(flag) is False:
            setattr(module, flag, True)
    if _VERSION in vars(module):
        setattr(module, _VERSION, version)
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError):  # it has no source
        return
    for statement in _outside_functions(tree):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                if _is_of_peft(alias.name):
                    found = importlib.import_module(alias.name)
                    setattr(module, alias.asname or "peft", found if alias.asname else sys.modules["peft"])
        elif isinstance(statement, ast.ImportFrom) and not statement.level and _is_of_peft(statement.module):
            source = importlib.import_module(str(statement.module))
            for alias in statement.names:
                setattr(module, alias.asname or alias.name, getattr(source, alias.name))


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        is_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not is_for_types and not isinstance(
            child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        ):
            yield child
            yield from _outside_functions(child)
