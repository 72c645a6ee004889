"""Dataclass fields: made with a range, checked against annotation and range; nothing is coerced silently. Names too."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal, Union

from torch import nn

from ..errors import ConfigError, NameTakenError

_EXAMPLES = {int: "8", float: "0.1", str: '"q_proj"', bool: "true"}
LARGEST = 3e38
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def bounded(
    default: Any,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """A dataclass field whose number must lie in the given range."""
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    return dataclasses.field(default=default, metadata={"bounds": {k: v for k, v in bounds.items() if v is not None}})


def extension(default: Any = None) -> Any:
    """A field that the reference's format lacks: written only when it is set."""
    return dataclasses.field(default=default, metadata={"extension": True})


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def validate_fields(instance: Any) -> None:
    """Check every field of a dataclass instance.

    A nested dataclass given as a dict is built; a set or tuple given for a list becomes a list.

    Raises:
        ConfigError: key, value, expected type or range.
    """
    hints = _hints(type(instance))  # type: ignore[arg-type]
    for f in dataclasses.fields(instance):
        value = getattr(instance, f.name)
        hint = hints[f.name]
        value = _adopt(value, hint, f.name)
        setattr(instance, f.name, value)
        if not _fits(value, hint):
            raise ConfigError(
                "wrong type", where=f.name, got=f"{value!r} ({type(value).__name__})", expected=_describe(hint)
            )
        _check_range(f.name, value, f.metadata.get("bounds", {}))


def _check_range(name: str, value: Any, bounds: Mapping[str, float]) -> None:
    numbers = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else [value]
    for number in numbers:
        if isinstance(number, float) and not math.isfinite(number):
            raise ConfigError("not a finite number", where=name, got=number)
        if isinstance(number, (int, float)) and abs(number) > LARGEST:
            raise ConfigError("larger than what a float32 holds", where=name, got=number)
        if bounds and isinstance(number, (int, float)):
            low_ok = number >= bounds.get("ge", number) and (number > bounds["gt"] if "gt" in bounds else True)
            high_ok = number <= bounds.get("le", number) and (number < bounds["lt"] if "lt" in bounds else True)
            if not (low_ok and high_ok):
                span = " and ".join(f"{_SIGNS[k]} {v}" for k, v in bounds.items())
                raise ConfigError("out of range", where=name, got=number, expected=span)


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _adopt(value: Any, hint: Any, name: str) -> Any:
    """Turn a dict into the dataclass that the field wants, and other collections into the list that it wants."""
    for option in _options(hint):
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping) and isinstance(option, type):
            known = {f.name for f in dataclasses.fields(option)}
            unknown = sorted(set(value) - known)
            if unknown:
                raise ConfigError("unknown key", where=f"{name}.{unknown[0]}", expected=", ".join(sorted(known)))
            return option(**value)
        if typing.get_origin(option) is list and isinstance(value, (set, frozenset)):
            return sorted(value)
        if typing.get_origin(option) is list and isinstance(value, tuple):
            return list(value)
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, a) for a in args)
    if origin is Literal:
        return any(value == a and type(value) is type(a) for a in args)
    if origin is list:
        return isinstance(value, list) and all(_fits(v, args[0]) for v in value)
    if origin is tuple:
        return isinstance(value, (tuple, list)) and len(value) == len(args) and all(map(_fits, value, args))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, args[0]) and _fits(v, args[1]) for k, v in value.items())
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    names = []
    for option in _options(hint):
        if typing.get_origin(option) is Literal:
            names += [repr(a) for a in typing.get_args(option)]
        elif isinstance(option, type) and not typing.get_args(option):
            names.append("null" if option is type(None) else option.__name__)
        else:
            names.append(str(option).replace("typing.", ""))
    example = next((_EXAMPLES[o] for o in _options(hint) if o in _EXAMPLES), None)
    enum = next((o for o in _options(hint) if isinstance(o, type) and issubclass(o, Enum)), None)
    if enum is not None:
        example = enum.__members__.copy().popitem()[0]
    return " or ".join(names) + (f", e.g. {example}" if example else "")


def idle_options(instance: Any, needs: Mapping[str, tuple[str | None, Any]]) -> list[str]:
    """The fields that were set and have no effect.

    Args:
        needs: field -> another field, and the value that this one must have (`...`: any but its default); or None, and
            why nothing here uses it.
    """
    defaults = {f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
                for f in dataclasses.fields(instance)}  # fmt: skip
    out = []
    for field, (other, needed) in needs.items():
        value = getattr(instance, field)
        if other is None:
            out += [f"{field} ({needed})"] if value != defaults[field] else []
            continue
        have = getattr(instance, other)
        counts = have != defaults[other] if needed is ... else have == needed
        if value != defaults[field] and not counts:
            out.append(f"{field} (it needs {other}{'' if needed is ... else f'={needed!r}'})")
    return out


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance; 3 and more are not told apart."""
    if abs(len(a) - len(b)) > 2:
        return 3
    row = list(range(len(b) + 1))
    for i, ca in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, cb in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (ca != cb))
    return row[-1]


def check_is(value: object, kind: type, where: str, example: str) -> None:
    """Refuse what is not of a kind, before it is asked for what it does not have.

    Raises:
        ConfigError: with an example.
    """
    if not isinstance(value, kind):
        raise ConfigError("wrong type", where=where, got=type(value).__name__, expected=f"{kind.__name__}, {example}")


def as_names(given: Any) -> tuple[str, ...]:
    """One adapter's name, or several, each once.

    Raises:
        ConfigError: something else.
    """
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, (list, tuple)) else None
    if names is None or not all(isinstance(n, str) for n in names):
        raise ConfigError("not the names of adapters", where="adapter_name", got=repr(given),
                          expected='"default", or a list of such')  # fmt: skip
    if len(set(names)) < len(names):
        raise ConfigError("an adapter would apply twice", where="adapter_name", got=", ".join(names))
    return names


_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_ -]{0,62}[A-Za-z0-9_-])?")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)")


def check_name(name: str) -> None:
    """Refuse adapter names that could not be a folder or a module.

    Raises:
        NameTakenError: with the allowed form.
    """
    if (
        not isinstance(name, str)
        or not _NAME.fullmatch(name)
        or _RESERVED.fullmatch(name)
        or hasattr(nn.ModuleDict(), name)
        or hasattr(nn.ParameterDict(), name)
    ):
        raise NameTakenError("not usable as an adapter's name", where="adapter_name", got=repr(name)[:80],
                             expected="1 to 64 letters, digits, spaces, _ or -, e.g. 'default'")  # fmt: skip
