"""`afina compare`"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..devices.ranks import started
from ..errors import RecipeError
from .as_json import AsJson, say_json
from .guard import guarded
from .train import split_arguments


@guarded
def compare(
    args: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE [KEY=VALUE | --KEY VALUE]...", help="A YAML file, or an embedded recipe."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Names, each with settings of its own if wanted: full,lora,lora:r=4:lr=1e-3")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of every method.")] = 3,
    ranks: Annotated[str | None, typer.Option(help="Take methods with a rank once at each: 4,16,64")] = None,
    tune: Annotated[int, typer.Option(help="Learning rates that are tried for every method around its own.")] = 5,
    no_tune: Annotated[bool, typer.Option("--no-tune", help="Search no rates; as --tune 0.")] = False,
    max_steps: Annotated[int | None, typer.Option(help="Steps of every run, instead of the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; without it the recipe's own with -comparison.")] = None,
    parallel: Annotated[
        int,
        typer.Option(help="Runs at once, on a GPU each or on the processor's cores; times are not compared then."),
    ] = 1,
    separate: Annotated[bool, typer.Option("--separate", help="A process for each run, for its exact memory.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train one task with many methods and seeds, and say which to take. A comparison that was stopped goes on."""
    from ..compare.comparison import Request, check
    from ..compare.comparison import compare as run
    from ..compare.report import write
    from ..evidence.candidates import DEFAULT_METHODS
    from .console import ConsoleReporter
    from .quiet import quiet_libraries

    source, overrides = split_arguments(args or [])
    if source is None:
        raise RecipeError("no recipe", got=args, expected="afina compare RECIPE --methods full,lora,ia3 --seeds 3")
    if started() > 1:
        raise RecipeError("it starts its runs itself, and would do so in every process", got=f"{started()} processes",
                          expected="one", fix="start it without torchrun, accelerate or srun")  # fmt: skip
    rates = 0 if no_tune else tune
    request = Request(source, methods or DEFAULT_METHODS, tuple(overrides), seeds, _ranks(ranks), rates, max_steps, out,
                      parallel, separate)  # fmt: skip
    check(request)
    reporter = ConsoleReporter()
    quiet_libraries(reporter)
    folder, comparison = run(request, reporter)
    written = write(folder, comparison)
    if as_json:
        say_json({"folder": folder, **comparison})
        return
    _table(comparison)
    typer.echo(comparison["recommendation"])
    typer.echo(f"written: {', '.join(str(path) for path in written)}")
    if comparison["recommended"]:
        typer.echo(f"next:\n  afina train {' '.join(_next(source, overrides, comparison))}")


def _ranks(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError as error:
        raise RecipeError("ranks are whole numbers", where="--ranks", got=text, expected="e.g. 4,16,64") from error


def _table(comparison: Mapping[str, Any]) -> None:
    from ..compare.table import cells, heads
    from .tables import print_table

    done = [row for row in comparison["rows"] if row["status"] == "done"]
    print_table([name for name, _ in heads(comparison)], [[text for text, _ in cells(row, comparison)] for row in done])
    for row in comparison["rows"]:
        if row["errors"]:
            typer.echo(f"{row['name']}: {row['status']}: {next(iter(row['errors'].values()))}")


def _next(source: str, overrides: list[tuple[str, str]], comparison: Mapping[str, Any]) -> list[str]:
    """The words that train the recommended method once more with `afina train`."""
    import shlex

    import yaml

    row = next(row for row in comparison["rows"] if row["name"] == comparison["recommended"])
    pairs = [*overrides, ("method.type", row["method"])]
    for key, value in row["settings"].items():
        text = yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("...\n").strip()
        pairs.append((f"method.{key}", text))
    pairs += [("lr", f"{row['learning_rate']:g}"), ("max_steps", str(comparison["steps"]))]
    return [shlex.quote(word) for word in (source, *(f"{key}={value}" for key, value in pairs))]
