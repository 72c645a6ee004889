"""`afina data`"""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import RecipeError
from .guard import guarded


@guarded
def data(
    file: Annotated[str, typer.Argument(help="Anything that data.train takes: a file, a folder, hub:NAME, FILE#500.")],
    model: Annotated[str | None, typer.Option(help="Model whose tokenizer counts tokens and renders samples.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Template of the prompt, e.g. 'Tweet: {text}'.")] = None,
    completion: Annotated[str | None, typer.Option(help="Template of the answer, e.g. '{label}'.")] = None,
    task: Annotated[str | None, typer.Option(help="What it would train; without it what the columns say.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="NAME=COLUMN: the file's column for a standard name, e.g. prompt=question.")
    ] = None,
    max_length: Annotated[int, typer.Option(help="Tokens at which training would cut.")] = 1024,
) -> None:
    """Show what a data file holds: rows, columns, lengths, labels, duplicates, problems, rendered samples."""
    from rich.table import Table
    from rich.text import Text

    from ..train.base.base_model import base_location, load_tokenizer
    from ..train.data.split import rows_of
    from ..train.recipe.sections import DataSection, ModelSection
    from ..train.use.examine import examine
    from .console import ConsoleReporter
    from .quiet import quiet_libraries

    reporter = ConsoleReporter()
    columns = _columns(column or [])
    section = DataSection(train=file, prompt=prompt, completion=completion, max_length=max_length, columns=columns)
    rows = rows_of(file, reporter, columns)
    tokenizer = None
    if model is not None:
        quiet_libraries(reporter)
        base = ModelSection(path=model)
        tokenizer = load_tokenizer(base_location(base, reporter), base, reporter)
    found = examine(rows, section, tokenizer, task)
    show = reporter.console.print
    show(Text(f"{file}: {found.rows} rows, form: {found.shape}, task: {found.task}"))
    table = Table("column", "rows with it", "type", "median", "95 %", "longest", box=None)
    for name, (count, kind) in found.columns.items():
        table.add_row(name, str(count), kind, *(f"{n} words" for n in found.lengths.get(name, ())))
    for name in [n for n in found.lengths if n not in found.columns]:
        table.add_row(name, "", "", *(str(n) for n in found.lengths[name]))
    show(table)
    for name, count in found.labels.items():
        show(Text(f"  label {name!r}: {count} ({count / found.rows:.1%})"))
    show(Text(f"duplicate rows: {found.duplicates}"))
    for where in found.empty:
        show(Text(f"empty text: {where}"))
    for note in found.notes:
        show(Text(f"note: {note}"))
    for problem in found.problems[:20]:
        show(Text(f"problem: {problem}"))
    if len(found.problems) > 20:
        show(Text(f"and {len(found.problems) - 20} more problems"))
    reporter.examples(found.examples)


def _columns(pairs: list[str]) -> dict[str, str] | None:
    out = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not (name and equals and column):
            raise RecipeError("a column needs a name", where="--column", got=pair, expected="NAME=COLUMN")
        out[name] = column
    return out or None
