"""Labels of labelled rows: which there are, and that every row has one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...errors import DataError, did_you_mean
from .rows import Rows


def label_of(rows: Rows, index: int, column: str, labels: list[str]) -> str:
    """The label of a row as text; a whole number is the position in `labels`.

    Raises:
        DataError: the label is unknown, out of range or of another type.
    """
    return _known(rows.value(index, column), rows.where(index), labels)


def _known(value: Any, where: str, labels: list[str]) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and str(value) not in labels:
        if not 0 <= value < len(labels):
            raise DataError("label out of range", where=where, got=value, expected=f"0 to {len(labels) - 1}")
        return labels[value]
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise DataError("a label is text or a whole number", where=where, got=f"{type(value).__name__} {value}")
    if str(value) not in labels:
        shown = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
        raise DataError(
            "label out of range", where=where, got=repr(value), expected=shown, fix=did_you_mean(str(value), labels)
        )
    return str(value)


def checked_labels(parts: Sequence[Rows], column: str, labels: list[str]) -> list[str]:
    """`labels`, after every row was found to have one of them.

    Raises:
        DataError: a row's label is missing, of a wrong type or out of range; has file and line.
    """
    for rows in parts:
        for index in range(len(rows)):
            label_of(rows, index, column, labels)
    return labels


def check_given(rows: Rows, column: str, labels: list[str] | None) -> None:
    """Refuse labels that are none of `labels`, where every row has one.

    Raises:
        DataError: a label is out of range; has file and line.
    """
    if labels is not None and all(column in row for row in rows.values):
        checked_labels([rows], column, labels)


def found_labels(rows: Rows, column: str) -> list[str]:
    """The labels that occur, whole numbers in their order, text in the alphabet's.

    Raises:
        DataError: fewer than two labels, or text and numbers mixed.
    """
    return _found([(rows.value(i, column), i) for i in range(len(rows))], rows)


def found_tags(rows: Rows, column: str) -> list[str]:
    """The same for a column of lists.

    Raises:
        DataError: fewer than two labels, text and numbers mixed, or something that is no list.
    """
    return _found([(tag, i) for i in range(len(rows)) for tag in _list(rows, i, column)], rows)


def _found(values: list[tuple[Any, int]], rows: Rows) -> list[str]:
    kinds = {type(value) for value, _ in values}
    if kinds <= {int}:
        low, row = min(values)
        if low < 0:
            raise DataError("label out of range", where=rows.where(row), got=low, expected="0 or more")
        labels = [str(i) for i in range(max(values)[0] + 1)]
    else:
        for value, row in values:
            if not isinstance(value, str):
                got = f"{type(value).__name__} {value}"
                mixed = "labels of different types" if kinds & {int, str} else "a label is text or a whole number"
                raise DataError(mixed, where=rows.where(row), got=got, expected="all text, or all whole numbers",
                                fix="write each class as text, or as a number from 0 on")  # fmt: skip
        labels = _told_apart(values, rows)
    if len(labels) < 2:
        raise DataError("fewer than two labels", where=rows.path, got=", ".join(labels), expected="at least two")
    return labels


_NO_LABELS = ("", "nan", "null", "<na>")
"""What tables write where there is nothing."""


def _told_apart(values: list[tuple[str, int]], rows: Rows) -> list[str]:
    """Text labels in the alphabet's order.

    Raises:
        DataError: one is empty or means that there is none, or two differ in outer blanks only.
    """
    seen: dict[str, str] = {}
    for value, row in values:
        plain = value.strip()
        if plain.casefold() in _NO_LABELS:
            fix = "take the row out" + (f", or name it in data.labels if {plain!r} is a label" if plain else "")
            raise DataError("a row has no label", where=rows.where(row), got=repr(value), fix=fix)
        if seen.setdefault(plain, value) != value:
            raise DataError("two labels differ in blanks only", where=rows.where(row), got=repr(value),
                            expected=repr(seen[plain]), fix="write them alike")  # fmt: skip
    return sorted(seen.values())


def _list(rows: Rows, index: int, column: str) -> list[Any]:
    value = rows.value(index, column)
    if not isinstance(value, list) or not value:
        raise DataError(f"{column!r} is no list, or empty", where=rows.where(index), got=str(value)[:60],
                        expected="a list with an item for every word")  # fmt: skip
    return value


def words_of(rows: Rows, index: int) -> list[str]:
    """The words of a row (column `tokens`).

    Raises:
        DataError: they are no list of text.
    """
    words = _list(rows, index, "tokens")
    other = next((word for word in words if not isinstance(word, str)), None)
    if other is not None:
        raise DataError("a word is no text", where=rows.where(index), got=f"{type(other).__name__} {other}")
    return words


def tags_of(rows: Rows, index: int, column: str, labels: list[str]) -> list[str]:
    """The tags of a row, one for each word.

    Raises:
        DataError: a tag is unknown, or there are more or fewer than words.
    """
    tags = [_known(tag, rows.where(index), labels) for tag in _list(rows, index, column)]
    words = len(words_of(rows, index))
    if len(tags) != words:
        raise DataError("a row needs a tag for every word", where=rows.where(index), got=f"{len(tags)} tags",
                        expected=f"{words}")  # fmt: skip
    return tags


def is_right(answer: str, label: str, labels: list[str]) -> bool:
    """Whether a free answer is exactly the label; case and a final full stop do not count, unless labels differ so."""
    if len({_plain(name) for name in labels}) < len(labels):
        return answer.strip() == label
    return _plain(answer) == _plain(label)


def _plain(text: str) -> str:
    return text.strip().rstrip(".").casefold()


def majority_share(labels: list[str]) -> float:
    """The accuracy of always answering the commonest label."""
    return max(Counter(labels).values()) / len(labels)


def task_numbers(rows: Rows, column: str | None) -> list[int] | None:
    """The number of every row's task; None where the recipe names no column.

    Raises:
        DataError: a row's is missing or no whole number from 0 on.
    """
    if column is None:
        return None
    out: list[int] = []
    for index in range(len(rows)):
        value = rows.value(index, column)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise DataError("a task is a whole number from 0 on", where=rows.where(index), got=repr(value)[:80])
        out.append(value)
    return out
