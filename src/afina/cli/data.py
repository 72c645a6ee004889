"""`afina data`"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DataError, RecipeError, did_you_mean
from .as_json import AsJson, say_json
from .guard import guarded

if TYPE_CHECKING:
    from ..train.data.rows import Rows
    from ..train.recipe.sections import DataSection, ModelSection
    from ..train.tasks import Task
    from ..train.use.examine import Findings
    from .console import ConsoleReporter

_MOST_PROBLEMS = 20


@guarded
def data(
    source: Annotated[
        str,
        typer.Argument(metavar="FILE_OR_RECIPE", help="What data.train takes (file, folder, hub:NAME), or a recipe."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the recipe to change.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model whose tokenizer counts tokens and renders samples.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Template of the prompt, e.g. 'Tweet: {text}'.")] = None,
    completion: Annotated[str | None, typer.Option(help="Template of the answer, e.g. '{label}'.")] = None,
    task: Annotated[str | None, typer.Option(help="What it would train; without it what the columns say.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="NAME=COLUMN: the file's column for a standard name, e.g. prompt=question.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens at which training would cut.")] = None,
    row: Annotated[
        list[int] | None, typer.Option(min=1, help="Show the row that begins on this line; may be repeated.")
    ] = None,
    show: Annotated[
        str, typer.Option(help="Samples as text, or masks: token by token with its part in the loss.")
    ] = "text",
    as_json: AsJson = False,
) -> None:
    """Show what a data file, or the data of a recipe, holds: rows, columns, lengths, labels, duplicates, problems,
    rendered samples. Ends with 2 where no row can be used.
    """
    from .console import ConsoleReporter

    if show not in ("text", "masks"):
        raise RecipeError("samples are not shown so", where="--show", got=show, expected="text or masks")
    reporter = ConsoleReporter()
    given = {"model": model, "prompt": prompt, "completion": completion, "task": task, "max_length": max_length}
    plan = _plan(source, overrides or [], {k: v for k, v in given.items() if v is not None}, column or [])
    found = _examined(plan, reporter, row or [], {"--max-length": max_length, "--show masks": show == "masks" or None})
    if as_json:
        say_json([_plain(name, findings) for name, _, findings in found])
    for name, rows, findings in found:
        if not as_json:
            _tell(name, rows, findings, row or [], show)
    for name, _, findings in found:
        if findings.usable == 0:
            got, _, fix = next((told[0] for told in findings.problems.values()), "").partition("; fix: ")
            raise DataError("no row can be used", where=name, got=got or None, fix=fix or None)


def _plan(
    source: str, overrides: list[str], given: dict[str, Any], column: list[str]
) -> tuple[DataSection, ModelSection | None, str | None, int]:
    """The data section, the model whose tokenizer is asked, the task, and the seed of draws."""
    from ..train.recipe.sections import DataSection, ModelSection
    from ..train.recipe.settings import is_recipe, load_recipe
    from .train import split_arguments

    if not is_recipe(source):
        if overrides:
            raise RecipeError("only a recipe's settings can be changed so", got=overrides[0], fix="use --options")
        model, task = given.pop("model", None), given.pop("task", None)
        base = None if model is None else ModelSection(path=model)
        return DataSection(train=source, columns=_columns(column), **given), base, task, 0
    if given or column:
        option = next(iter(given), "column").replace("_", "-")
        raise RecipeError("the recipe says this", where=f"--{option}", fix="change it as in afina train: KEY=VALUE")
    recipe = load_recipe(source, split_arguments(overrides)[1])
    return recipe.data, recipe.model, recipe.task, recipe.training.seed


def _examined(
    plan: tuple[DataSection, ModelSection | None, str | None, int],
    reporter: ConsoleReporter,
    lines: list[int],
    of_tokens: Mapping[str, object],
) -> list[tuple[str, Rows, Findings]]:
    from ..train.data.columns import check_columns, renamed
    from ..train.data.formats import recognise
    from ..train.data.joined import joined, named_sets
    from ..train.data.split import drawn_rows
    from ..train.use.examine import examine, fitting_task
    from .quiet import quiet_libraries

    section, model, task, seed = plan
    check_columns(section)
    named = [one if isinstance(one, str) else one.path for part in (section.train, section.eval) if part
             for one in ([part] if isinstance(part, str) else part)]  # fmt: skip
    raw = {name: drawn_rows(name, reporter, seed) for name in named}
    _check_columns_there(raw.values(), section)
    sources = {name: recognise(renamed(rows, section.columns))[0] for name, rows in raw.items()}
    if not isinstance(section.train, str):
        joined([(name, sources[one.path]) for name, one in named_sets(section.train, "data.train")])
    shown = {name: [i for i, line in enumerate(rows.lines) if line in lines] for name, rows in sources.items()}
    missing = [line for line in lines if all(line not in rows.lines for rows in sources.values())]
    if missing:
        most = max(rows.lines[-1] for rows in sources.values())
        raise DataError("no row begins on this line", where="--row", got=missing[0], expected=f"1 to {most}")
    tokenizer, fitting = None, fitting_task(next(iter(sources.values())), section, task)
    _check_tokens(fitting, model, of_tokens)
    if model is not None:
        quiet_libraries(reporter)
        tokenizer = fitting.reader(fitting.location(model, reporter), model, reporter)
    out = []
    for name, rows in sources.items():
        out.append((name, rows, examine(rows, section, tokenizer, task, shown[name])))
        # Held-out rows need not have all the labels.
        section = section.model_copy(update={"labels": section.labels or out[0][2].classes})
    return out


def _check_columns_there(sources: Iterable[Rows], section: DataSection) -> None:
    """Refuse a column that is in none of the sources.

    Raises:
        DataError: names it.
    """
    from ..train.data.columns import absent

    found = list(sources)
    for name in absent(found[0], section.columns):
        if all(name in absent(rows, section.columns) for rows in found):
            column = (section.columns or {})[name]
            raise DataError(f"no column {column!r} to take as {name!r}", where=found[0].path,
                            got=f"columns {', '.join(map(repr, found[0].values[0]))}",
                            fix=did_you_mean(column, found[0].values[0]))  # fmt: skip


def _check_tokens(task: Task, model: ModelSection | None, given: Mapping[str, object]) -> None:
    """Refuse options that speak of tokens where there are none.

    Raises:
        RecipeError: names the option.
    """
    option = next((name for name, value in given.items() if value is not None), None)
    if option is None:
        return
    if task.medium != "texts" and not task.writes:
        raise RecipeError(f"rows of this task are {task.medium}, and have no tokens", where=option, got=task.name,
                          fix="leave it out")  # fmt: skip
    if model is None:
        raise RecipeError("only a model's tokenizer makes tokens", where=option, fix="--model MODEL")


def _tell(name: str, rows: Rows, found: Findings, lines: list[int], how: str) -> None:
    import json

    from rich.table import Table
    from rich.text import Text

    from ..train.data.formats import IN_WORDS
    from .console import print_examples, results_console

    console = results_console()
    show = console.print
    usable = "" if found.usable is None else f", {found.usable} can be used"
    form = f"{found.shape} ({IN_WORDS[found.shape]})" if found.shape in IN_WORDS else found.shape
    show(Text(f"{name}: {found.rows} rows{usable}, form: {form}, task: {found.task}"))
    table = Table("column", "rows with it", "type", "median", "95 %", "longest", box=None)
    for column, (count, kind) in found.columns.items():
        table.add_row(column, str(count), kind, *(f"{n} words" for n in found.lengths.get(column, ())))
    for column in [n for n in found.lengths if n not in found.columns]:
        table.add_row(column, "", "", *(str(n) for n in found.lengths[column]))
    show(table)
    for label, count in found.labels.items():
        show(Text(f"  label {label!r}: {count} ({count / found.rows:.1%})"))
    for line in found.files.lines if found.files is not None else ():
        show(Text(line))
    show(Text(f"duplicate rows: {found.duplicates}"))
    for where in found.empty:
        show(Text(f"empty text: {where}"))
    for note in found.notes:
        show(Text(f"note: {note}"))
    for what, times in list(found.problems.items())[:_MOST_PROBLEMS]:
        show(
            Text(
                f"problem: {times[0]}" if len(times) == 1 else f"problem, {len(times)} times: {what}; first {times[0]}"
            )
        )
    if len(found.problems) > _MOST_PROBLEMS:
        show(Text(f"and {len(found.problems) - _MOST_PROBLEMS} more kinds of problems"))
    for index in [i for i, line in enumerate(rows.lines) if line in lines]:
        show(Text(f"{rows.where(index)}: {json.dumps(rows.values[index], ensure_ascii=False)}"))
        if found.usable is not None and index not in found.examples:
            show(Text("  cannot be trained on"))
    if how == "text" and found.examples:
        print_examples(console, list(found.examples.values()))
    for index, tokens in found.masks.items() if how == "masks" else ():
        show(Text(f"--- {rows.where(index)}" + ("" if tokens else ": the loss is taken on the whole, not on tokens")))
        for token in tokens:
            line = f"{token.id:8} {'trained' if token.trained else 'masked ':7} {token.text!r}"
            show(Text(line, style="bold green" if token.trained else "dim"))


def _plain(name: str, found: Findings) -> dict[str, Any]:
    from dataclasses import asdict

    values = asdict(found)
    values["masks"] = {row: [list(token) for token in tokens] for row, tokens in found.masks.items()}
    return {"source": name, **values}


def _columns(pairs: list[str]) -> dict[str, str] | None:
    out = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not (name and equals and column):
            raise RecipeError("a column needs a name", where="--column", got=pair, expected="NAME=COLUMN")
        out[name] = column
    return out or None
