"""Names matched against lists and patterns, which may come from a file: all on one budget of time, and each entry knows
whether it was of use."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ...errors import ConfigError
from ..files.budget import budget

MAX_PATTERN = 2000
MAX_STEPS = 20_000
"""Characters that a pattern stands for when its counted repetitions are written out; compiling has no time limit."""
MAX_NESTED = 30
_COUNT = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_META = frozenset("\\^$*+?{}[]()|")


def _steps(pattern: str, where: str) -> int:
    """How many characters a pattern stands for with its repetitions written out.

    Raises:
        ConfigError: nested too deeply, or braces that are no count (in the `regex` package they mean something else
            than in Python's own patterns).
    """
    sums, last, at = [0], 0, 0
    while at < len(pattern):
        char = pattern[at]
        if char == "{":
            count = _COUNT.match(pattern, at)
            if count is None or not count.group(0).strip("{},"):
                raise ConfigError("braces that are no count, such as {2,3}, in a pattern", where=where, got=pattern)
            factor = max(int(n[:9]) for n in count.groups() if n)
            sums[-1] += last * max(factor - 1, 0)
            last, at = last * max(factor, 1), count.end()
            continue
        if char == "(":
            sums.append(0)
            if len(sums) > MAX_NESTED:
                raise ConfigError("the pattern is nested too deeply", where=where, got=pattern)
        elif char == ")" and len(sums) > 1:
            last = sums.pop() + 1
            sums[-1] += last
        elif char not in "*+?|":
            end = _class_end(pattern, at) if char == "[" else at + (char == "\\")
            sums[-1], last, at = sums[-1] + 1, 1, end
        at += 1
    return sum(sums)


def _class_end(pattern: str, at: int) -> int:
    """Where the set of characters that begins at `at` ends."""
    at += 2 if pattern[at + 1 : at + 2] == "^" else 1
    at += pattern[at : at + 1] == "]"
    while at < len(pattern) and pattern[at] != "]":
        at += 2 if pattern[at] == "\\" else 1
    return at


@lru_cache(maxsize=256)
def _compiled(pattern: str, where: str, around: str) -> Any:
    """The pattern, if it is one for Python's `re` too (which reads it in other libraries), compiled by the package
    that can stop after a time."""
    import regex

    if len(pattern) > MAX_PATTERN:
        raise ConfigError("the pattern is too long", where=where, got=len(pattern), expected=f"<= {MAX_PATTERN}")
    if _steps(pattern, where) > MAX_STEPS:
        raise ConfigError("the pattern repeats too much", where=where, got=pattern,
                          expected=f"<= {MAX_STEPS} characters with its repetitions written out")  # fmt: skip
    try:
        re.compile(pattern)
        return regex.compile(around.replace("{}", pattern))
    except (re.error, regex.error, OverflowError) as error:
        raise ConfigError(f"not a valid pattern: {error}", where=where, got=pattern) from None


def full_match(pattern: str, name: str, where: str, around: str = "{}") -> Any:
    """`re.fullmatch` on the open budget of time; `around` is what the pattern is put into.

    Raises:
        ConfigError: the pattern is invalid, or the patterns take too long.
    """
    found = None
    with budget() as left, left.matching(where, pattern) as seconds:
        found = _compiled(pattern, where, around).fullmatch(name, timeout=seconds)
    return found


class WholeNames(list[str]):
    """Names that mean exactly themselves, not every module that ends so."""


class Matcher:
    """A list of names or a pattern, as a config field has it.

    Args:
        wanted: a pattern that matches whole names, or a list of names and ends of dotted names.
        where: the field, for messages.
    """

    def __init__(self, wanted: str | Collection[str], where: str = "target_modules") -> None:
        self.wanted, self.where = wanted, where
        self.entries = frozenset() if isinstance(wanted, str) else frozenset(wanted)
        self.used: set[str] = set()

    def __call__(self, name: str) -> bool:
        """Whether the name is wanted: by a full pattern match, or by equality or dotted suffix in a list."""
        if isinstance(self.wanted, str):
            found = {self.wanted} if full_match(self.wanted, name, self.where) is not None else set()
        elif isinstance(self.wanted, WholeNames):
            found = {name} & self.entries
        else:
            found = {end for end in _ends(name) if end in self.entries}
        self.used |= found
        return bool(found)

    def unused(self) -> list[str]:
        """The entries that no name has matched so far."""
        every = [self.wanted] if isinstance(self.wanted, str) else dict.fromkeys(self.wanted)
        return [entry for entry in every if entry not in self.used]


class SavedNames(Matcher):
    """The names of `modules_to_save`: ends of modules' names as text, dots or not. In the reference `norm` means
    `input_layernorm` too, and files with a `classifier` hold DistilBERT's `pre_classifier`."""

    def __init__(self, wanted: Collection[str]) -> None:
        super().__init__(list(wanted), "modules_to_save")
        self.lengths = {len(entry) for entry in self.entries} - {0}

    def __call__(self, name: str) -> bool:
        found = {name[-n:] for n in self.lengths if n <= len(name)} & self.entries
        self.used |= found
        return bool(found)


def _ends(name: str) -> Iterable[str]:
    """The name and all its ends at a dot."""
    yield name
    at = name.find(".")
    while at >= 0:
        yield name[at + 1 :]
        at = name.find(".", at + 1)


def name_in(name: str, wanted: str | Collection[str], where: str = "target_modules") -> bool:
    """Whether one module's name is wanted, as by a `Matcher`; of many names, ask one `Matcher`."""
    return Matcher(wanted, where)(name)


class _Keys:
    """A dict's keys by their number: names (whose only special characters are dots), and patterns."""

    def __init__(self, patterns: Mapping[str, Any]) -> None:
        self.keys = list(patterns)
        self.names: dict[str, int] = {}
        self.patterns: list[int] = []
        # Last part -> where in a key of which length the dots stand.
        self.dotted: dict[str, set[tuple[int, ...]]] = {}
        for number, key in enumerate(self.keys):
            if _META & set(key) or len(key) > MAX_PATTERN:
                self.patterns.append(number)
                continue
            self.names[key] = number
            if "." in key:
                dots = (len(key), *(at for at, char in enumerate(key) if char == "."))
                self.dotted.setdefault(key.rpartition(".")[2], set()).add(dots)

    def perhaps(self, name: str) -> Iterator[int]:
        """The numbers of keys that may match the end of a name: itself, patterns, and names whose dots stand for other
        characters in it."""
        yield from (self.names[end] for end in _ends(name) if end in self.names)
        yield from self.patterns
        for at in range(len(name) + 1 if self.dotted else 0):
            for length, *dots in self.dotted.get(name[at:], ()):
                tail = list(name[-length:])
                for dot in dots if len(tail) == length else ():
                    tail[dot] = "."
                if (key := "".join(tail)) in self.names:
                    yield self.names[key]


def key_for(names: Sequence[str], patterns: Mapping[str, Any], where: str = "rank_pattern") -> str | None:
    """The first key of `patterns` that is one of a module's `names` or matches the end of one as a pattern."""
    if not patterns:
        return None
    with budget() as left, left.matching(where, f"{len(patterns)} keys"):
        keys = left.remembered(patterns, _Keys)
        perhaps = sorted({number for name in names for number in keys.perhaps(name)})
    for key in (keys.keys[number] for number in perhaps):
        if any(n == key or n.endswith(f".{key}") or full_match(key, n, where, r"(.*\.)?({})") for n in names):
            return key
    return None


def value_for(
    name: str | Sequence[str], patterns: Mapping[str, Any] | None, default: Any, where: str = "rank_pattern"
) -> Any:
    """The value of the first key that matches the end of a module's name (of one of its names), or `default`."""
    names = (name,) if isinstance(name, str) else name
    key = key_for(names, patterns or {}, where)
    return default if key is None or patterns is None else patterns[key]
