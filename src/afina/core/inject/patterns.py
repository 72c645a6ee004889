"""Names matched against lists and patterns. Patterns may come from a file, so they run with a time limit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from ...errors import ConfigError

SECONDS_A_MATCH = 0.05
MAX_PATTERN = 2000


@lru_cache(maxsize=256)
def _compiled(pattern: str, where: str) -> Any:
    import regex

    if len(pattern) > MAX_PATTERN:
        raise ConfigError("the pattern is too long", where=where, got=len(pattern), expected=f"<= {MAX_PATTERN}")
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise ConfigError(f"not a valid pattern: {error}", where=where, got=pattern) from None


def full_match(pattern: str, name: str, where: str) -> Any:
    """`re.fullmatch` that gives up after 50 ms.

    Raises:
        ConfigError: the pattern is invalid or takes too long.
    """
    try:
        return _compiled(pattern, where).fullmatch(name, timeout=SECONDS_A_MATCH)
    except TimeoutError:
        raise ConfigError(f"the pattern takes too long on {name!r}", where=where, got=pattern[:80]) from None


class WholeNames(list[str]):
    """Names that mean exactly themselves, not every module that ends so."""


def name_in(name: str, wanted: str | Collection[str], where: str = "target_modules") -> bool:
    """Whether a module's name is wanted: by a full pattern match, or by equality or dotted suffix in a list."""
    if isinstance(wanted, str):
        return full_match(wanted, name, where) is not None
    if isinstance(wanted, WholeNames):
        return name in wanted
    if isinstance(wanted, (set, frozenset)):
        parts = name.split(".")
        return any(".".join(parts[i:]) in wanted for i in range(len(parts)))
    return any(name == w or name.endswith(f".{w}") for w in wanted)


def value_for(name: str, patterns: Mapping[str, Any] | None, default: Any, where: str = "rank_pattern") -> Any:
    """The value of the first key that matches the end of a module's name (as a pattern), or `default`."""
    for key, value in (patterns or {}).items():
        if name == key or full_match(rf"(.*\.)?({key})", name, where):
            return value
    return default
