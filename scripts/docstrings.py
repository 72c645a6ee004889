"""What docstrings say, taken apart: the text, and what they tell of each parameter, field and error."""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
_MEMBERS = (types.FunctionType, property, classmethod, staticmethod)
_HEAD = re.compile(rf"^({'|'.join(SECTIONS)}):$")
_ENTRY = re.compile(r"^(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): (.*)$")


@dataclasses.dataclass(frozen=True)
class Doc:
    """A docstring.

    Attributes:
        text: all that stands in no section.
        entries: section -> what it names -> what it says of that; "" names what is said without a name.
    """

    text: str
    entries: dict[str, dict[str, str]]

    def tells_of(self, name: str, *sections: str) -> bool:
        """Whether a section has an entry for a name, or the text has it in backticks."""
        return name in self.named(*sections) or re.search(rf"`\*{{0,2}}{name}`", self.text) is not None

    def named(self, *sections: str) -> dict[str, str]:
        """What the sections say of single names, `*` left out; where one entry names several, of each."""
        found = [pair for section in sections for pair in self.entries.get(section, {}).items()]
        return {name.strip("* "): text for names, text in found for name in names.split(",")}


def parse(docstring: str | None) -> Doc:
    """Take a docstring apart."""
    text: list[str] = []
    entries: dict[str, dict[str, str]] = {}
    section, entry = "", ""
    for line in inspect.cleandoc(docstring or "").splitlines():
        if head := _HEAD.match(line):
            section, entry = head[1], ""
            entries[section] = {}
        elif not section or (line and not line.startswith(" ")):
            section = ""
            text.append(line)
        elif line.strip():
            inner = line[4:]
            if found := _ENTRY.match(inner):
                entry = found[1]
                entries[section][entry] = found[2]
            else:
                said = entries[section].get(entry, "")
                entries[section][entry] = f"{said} {inner.strip()}".strip()
    return Doc("\n".join(text).strip(), entries)


# -- fields -----------------------------------------------------------------------------------------------------------


@functools.cache
def _body(cls: type) -> list[ast.stmt]:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    return node.body


def attribute_docs(cls: type) -> dict[str, str]:
    """What the class itself says of its attributes: in its docstring, and in strings below them."""
    told = parse(vars(cls).get("__doc__")).named("Args", "Attributes")
    for above, below in zip(_body(cls), _body(cls)[1:], strict=False):
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            names = [above.target] if isinstance(above, ast.AnnAssign) else getattr(above, "targets", [])
            told |= {n.id: " ".join(below.value.value.split()) for n in names if isinstance(n, ast.Name)}
    return told


def ours(cls: type) -> list[type]:
    """The class and those of its bases that are of its own package."""
    package = cls.__module__.partition(".")[0]
    return [c for c in cls.__mro__ if c.__module__.partition(".")[0] == package]


def field_docs(cls: type) -> dict[str, str]:
    """What a class and its bases say of attributes; the nearest word counts."""
    return {name: text for base in reversed(ours(cls)) for name, text in attribute_docs(base).items()}


def own_fields(cls: type) -> list[dataclasses.Field[Any]]:
    """The fields that users give, of those that the class itself declares."""
    own = vars(cls).get("__annotations__", {})
    return [f for f in dataclasses.fields(cls) if f.name in own and f.init and not f.metadata.get("runtime")]


# -- what is missing --------------------------------------------------------------------------------------------------


def methods_of(cls: type) -> dict[str, Any]:
    """The public methods and properties that afina gives a class."""
    found: dict[str, Any] = {}
    for base in ours(cls):
        for name, value in vars(base).items():
            found.setdefault(name, value)
    return {n: v for n, v in found.items() if not n.startswith("_") and isinstance(v, _MEMBERS)}


def parameters(function: Callable[..., Any]) -> list[str]:
    """The names of a function's parameters, without `self` and `cls`."""
    return [n for n in inspect.signature(function).parameters if n not in ("self", "cls")]


def raised(function: Callable[..., Any]) -> set[str]:
    """The classes of the errors that a function's own lines raise; an abstract method's is none."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise)]
    found = {ast.unparse(e.func if isinstance(e, ast.Call) else e) for e in calls if e is not None}
    return {n for n in found if n[0].isupper() and n != "NotImplementedError"}


def gaps(name: str, value: Any) -> Iterator[str]:
    """What the docstrings of a public name leave out."""
    if not isinstance(value, type):
        yield from _gaps_of_function(name, value, parse(value.__doc__))
        return
    if not vars(value).get("__doc__") or str(vars(value)["__doc__"]).startswith(f"{value.__name__}("):
        yield f"{name}: no docstring of its own"
    if dataclasses.is_dataclass(value):
        yield from (f"{name}: field {f.name}" for f in own_fields(value) if f.name not in field_docs(value))
    elif issubclass(value, enum.Enum):
        yield from (f"{name}: member {m.name}" for m in value if m.name not in attribute_docs(value))
    elif "__init__" in vars(value):
        yield from (f"{name}: parameter {p}" for p in parameters(value.__init__) if p not in field_docs(value))
    told = {n for c in ours(value) for n in parse(vars(c).get("__doc__")).named("Raises")}
    for method in ("__init__", "__post_init__"):
        if inspect.isfunction(made := vars(value).get(method)) and made.__code__.co_filename != "<string>":
            yield from (f"{name}: raises {e}" for e in raised(made) - told)
    for method, member in methods_of(value).items():
        said = inspect.getdoc(getattr(value, method) if not isinstance(member, property) else member)
        if isinstance(member, property):
            if not said:
                yield f"{name}.{method}: no docstring"
        else:
            function = getattr(value, method)
            yield from _gaps_of_function(function.__qualname__, function, parse(said))


def _gaps_of_function(name: str, function: Any, doc: Doc) -> Iterator[str]:
    if not doc.text:
        yield f"{name}: no docstring"
    yield from (f"{name}: parameter {p}" for p in parameters(function) if not doc.tells_of(p, "Args"))
    yield from (f"{name}: raises {e}" for e in raised(function) - {*doc.named("Raises")})
