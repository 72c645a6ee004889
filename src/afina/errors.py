"""The tree of errors: what happened, where, what was got and expected, and how to fix it, in at most four lines.

Everything that a user can cause derives from `AfinaError`; the command line turns those into exit code 2. The second
bases (`ValueError`, ...) are those that callers of the reference library already catch.
"""

from __future__ import annotations

import difflib
import heapq
import itertools
from collections.abc import Iterable
from enum import Enum


class AfinaError(Exception):
    """A user's mistake or a faulty input, told in at most four lines.

    Args:
        what: what happened, in one sentence.
        where: the file, key, module or tensor that it happened in.
        got: the offending value.
        expected: what would have been right.
        fix: what to do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.where, self.got, self.expected, self.fix = what, where, got, expected, fix
        super().__init__(what)

    def __str__(self) -> str:
        first = _cut(self.what) if self.where is None else f"{_cut(self.where)}: {_cut(self.what)}"
        facts = [f"{k}: {_cut(v)}" for k, v in (("got", self.got), ("expected", self.expected)) if v is not None]
        # On one line, so that a command may tell one of its own before and stay within four.
        lines = [first, "; ".join(facts), f"fix: {_cut(self.fix)}" if self.fix else ""]
        return "\n".join(filter(None, lines))


LONGEST = 400
"""Characters of one part of a message."""


def _cut(value: object) -> str:
    """A part of a message on one line: its middle left out if it is long, without what could steer a terminal."""
    text = str(value.value if isinstance(value, Enum) else value)
    if len(text) > LONGEST:
        head, tail = text[: LONGEST * 3 // 4], text[-LONGEST // 8 :]
        text = f"{head} [... {len(text) - len(head) - len(tail)} characters ...] {tail}"
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)


class ConfigError(AfinaError, ValueError):
    """A configuration has a wrong type, range, name or combination."""


class TargetError(AfinaError, ValueError):
    """A config's targets match nothing, or something that cannot be adapted."""


class NameTakenError(AfinaError, ValueError):
    """An adapter name is taken, unknown or not usable."""


class CheckpointError(AfinaError, ValueError):
    """A file is damaged, does not fit, or is not what it says."""


class NotMergeable(AfinaError, NotImplementedError):
    """This method has no merged form."""


class NotAWeight(AfinaError, NotImplementedError):
    """This layer is not a linear operator with a weight that can be read."""


class MergeError(AfinaError, ValueError):
    """Merging is not possible or would damage the base."""


class NumericError(AfinaError, ValueError):
    """A tensor or a loss is not finite."""


class DataError(AfinaError, ValueError):
    """A data file or a row of it is unusable."""


class RecipeError(AfinaError, ValueError):
    """A recipe has an unknown key or a wrong value."""


class StoppedError(AfinaError, RuntimeError):
    """A run was asked to stop, and did so in good order.

    Attributes:
        exit_code: what the command ends with.
    """

    def __init__(self, what: str, *, fix: str | None = None, exit_code: int = 130) -> None:
        super().__init__(what, fix=fix)
        self.exit_code = exit_code


class AfinaWarning(UserWarning):
    """Something was done that the user should know of."""


MOST_COMPARED = 300
"""Names that are compared letter by letter with one that is not known."""


def nearest(word: str, known: Iterable[str], n: int = 1) -> list[str]:
    """The `n` known words closest to `word`, best first; empty if none is close. Linear in their number."""
    pool = list(dict.fromkeys(known))
    if len(pool) > MOST_COMPARED:
        parts, length = set(word.split(".")), len(word)
        near = heapq.nsmallest(
            MOST_COMPARED, pool, key=lambda k: (-len(parts.intersection(k.split("."))), abs(len(k) - length))
        )
        pool = near
    return difflib.get_close_matches(word[:200], [k for k in pool if len(k) <= 400], n=n, cutoff=0.4)


def nearest_to_all(words: Iterable[str], known: Iterable[str], n: int = 5) -> str:
    """A `fix` sentence with the known words that are nearest to any of `words`; the first known ones if none is."""
    pool = list(dict.fromkeys(known))
    close = list(dict.fromkeys(c for w in itertools.islice(words, 5) for c in nearest(w, pool, n)))
    return f"nearest names: {', '.join((close or pool)[:n])}"


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A `fix` sentence naming the nearest known word, or None."""
    close = nearest(word, known)
    return f"did you mean {close[0]!r}?" if close else None
