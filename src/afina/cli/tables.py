"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """As wide as the terminal, or 200 characters where there is none; the first column is never broken."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for number, name in enumerate(heads):
        table.add_column(name, no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, soft_wrap=False, width=None if Console().is_terminal else 200).print(table)
