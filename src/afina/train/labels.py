"""Labels of labelled rows: which there are, and that every row has one of them."""

from __future__ import annotations

from collections import Counter

from ..errors import DataError, did_you_mean
from .rows import Rows


def label_of(rows: Rows, index: int, column: str, labels: list[str]) -> str:
    """The label of a row as text; a whole number is the position in `labels`.

    Raises:
        DataError: the label is unknown, out of range or of another type.
    """
    value, where = rows.value(index, column), rows.where(index)
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


def found_labels(rows: Rows, column: str) -> list[str]:
    """The labels that occur, whole numbers in their order, text in the alphabet's.

    Raises:
        DataError: fewer than two labels, or text and numbers mixed.
    """
    values = [rows.value(i, column) for i in range(len(rows))]
    kinds = {type(value) for value in values}
    if kinds <= {int}:
        low = values.index(min(values))
        if values[low] < 0:
            raise DataError("label out of range", where=rows.where(low), got=values[low], expected="0 or more")
        labels = [str(i) for i in range(max(values) + 1)]
    else:
        for i, value in enumerate(values):
            if not isinstance(value, str):
                got = f"{type(value).__name__} {value}"
                raise DataError("labels of different types", where=rows.where(i), got=got, expected="str")
        labels = sorted(set(values))
    if len(labels) < 2:
        raise DataError("fewer than two labels", where=rows.path, got=", ".join(labels), expected="at least two")
    return labels


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
