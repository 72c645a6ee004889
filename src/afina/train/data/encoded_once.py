"""Rows that several runs read alike are encoded once for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, NamedTuple

from ..conversations.ledger import Ledger
from .encode import Encoded
from .rows import Rows


class _Kept(NamedTuple):
    rows: Rows
    encoded: Encoded
    unread: Counter[str]
    told: Counter[str]


class EncodedOnce:
    """What was encoded, for runs to come.

    Attributes:
        spared: how often rows were found here.
    """

    def __init__(self) -> None:
        self._kept: dict[Any, list[_Kept]] = {}
        self.spared = 0

    def encoded(self, key: Any, rows: Rows, ledger: Ledger, fresh: Callable[[Rows], Encoded]) -> Encoded:
        """What `fresh` makes of rows, or made of the same ones; what went into the ledger then goes there again.

        Args:
            key: all else that it depends on.
        """
        known = self._kept.setdefault(key, [])
        found = next((one for one in known if _same(one.rows, rows)), None)
        if found is None:
            unread, told = ledger.unread.copy(), ledger.told.copy()
            out = fresh(rows)
            if not all(map(_is_plain, out.items)):
                return out
            known.append(found := _Kept(rows, out, ledger.unread - unread, ledger.told - told))
        else:
            self.spared += 1
            rows.read.update(found.rows.read)
            ledger.unread.update(found.unread)
            ledger.told.update(found.told)
        items, source = [dict(item) for item in found.encoded.items], list(found.encoded.source)
        return replace(found.encoded, items=items, source=source, rows=rows)


def _same(one: Rows, other: Rows) -> bool:
    return one == other and repr(one.values) == repr(other.values)  # 1 equals True


def _is_plain(item: dict[str, Any]) -> bool:
    """Whether it is made of numbers alone: images and sounds are read anew, and nobody's to share."""
    return all(isinstance(value, int | float | list | type(None)) for value in item.values())


_STORE: ContextVar[EncodedOnce | None] = ContextVar("afina_encoded", default=None)


@contextmanager
def encoded_in(store: EncodedOnce) -> Iterator[None]:
    """Have what is encoded within kept in `store`, and found there."""
    token = _STORE.set(store)
    try:
        yield
    finally:
        _STORE.reset(token)


def store() -> EncodedOnce | None:
    """Where what is encoded now is kept; None where nobody else reads it."""
    return _STORE.get()
