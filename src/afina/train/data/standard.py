"""The names that forms of rows are recognised by, and what to do about columns that nearly have them."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import nearest

STANDARD = (
    "prompt", "completion", "instruction", "input", "output", "messages", "conversations", "text", "label", "chosen",
    "rejected", "tokens", "tags", "system", "tools", "history", "question", "context", "answers", "answer",
    "anchor", "positive", "negative", "image", "images", "audio",
)  # fmt: skip
"""Names that formats are recognised by."""


def nearly(columns: Iterable[str]) -> dict[str, str]:
    """Standard name -> the column that differs from it in case or outer blanks only, where it is the only one."""
    alike: dict[str, list[str]] = {}
    for column in columns:
        alike.setdefault(column.strip().casefold(), []).append(column)
    return {name: alike[name][0] for name in STANDARD if len(alike.get(name, ())) == 1 and alike[name] != [name]}


def mapping(names: dict[str, str]) -> str:
    """What a recipe says to have them read: `data.columns={text: Text}`."""
    return f"data.columns={{{', '.join(f'{name}: {_quoted(column)}' for name, column in names.items())}}}"


def _quoted(column: str) -> str:
    return column if column.replace("_", "").isalnum() else repr(column)


def how_to_have(name: str, columns: Iterable[str]) -> str | None:
    """What to write for a column that a row lacks. Who gave no name to it cannot mend a name: the recipe says which
    column it is."""
    have = list(columns)
    close = [near[name]] if name in (near := nearly(have)) else nearest(name, have)
    if not close:
        return None
    return mapping({name: close[0]}) if name in STANDARD else f"did you mean {close[0]!r}?"


def how_to_answer(columns: Iterable[str], text: str, label: str) -> str:
    """How rows that have no prompt and answer can be used, by their columns.

    Args:
        text, label: what the recipe calls the columns of texts and labels.
    """
    have = list(columns)
    if near := nearly(have):
        return f"the names differ in case or blanks only: {mapping(near)}"
    if text in have and label in have:
        return f"task=sequence_classification learns labels; or data.prompt='{{{text}}}' data.completion='{{{label}}}'"
    if text in have and len(have) == 2:
        (other,) = (column for column in have if column != text)
        return f"task=sequence_classification data.label_column={other} learns labels, task=pretraining texts alone"
    if text in have:
        return "task=pretraining learns texts alone; task=sequence_classification if a column has their labels"
    return "name the columns, e.g. data.prompt='{question}' data.completion='{answer}'"
