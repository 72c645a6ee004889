"""`afina tune`"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..devices.ranks import started
from ..errors import RecipeError
from .as_json import AsJson, say_json
from .guard import guarded
from .train import split_arguments

DEFAULT = ("rate",)
"""What is searched where nothing is said."""


@guarded
def tune(
    args: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE [KEY=VALUE | --KEY VALUE]...", help="A YAML file, or an embedded recipe."),
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(help="What to search: rate,rank or rate=1e-4,1e-3 or rank=4..64 or method=lora,ia3."),
    ] = None,
    candidates: Annotated[int, typer.Option(help="The most that are tried; of more, Optuna's sampler chooses.")] = 16,
    rungs: Annotated[int, typer.Option(help="At how many steps they are compared on the way.")] = 3,
    at_once: Annotated[
        int | None, typer.Option(help="How many are trained together; without it as many as fit.")
    ] = None,
    share_passes: Annotated[
        bool | None,
        typer.Option("--share-passes/--own-passes", help="Passes through the base: shared, or own; own on processors."),
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Steps of every candidate, instead of the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; without it the recipe's own with -tuned.")] = None,
    as_json: AsJson = False,
) -> None:
    """Search the best settings in one pass over the base: those that are significantly worse leave on the way."""
    from ..tune.space import space as axes
    from .console import ConsoleReporter
    from .quiet import quiet_libraries
    from .tables import print_table

    source, overrides = split_arguments(args or [])
    if source is None:
        raise RecipeError("no recipe", got=args, expected="afina tune RECIPE --space rate,rank")
    if started() > 1:
        raise RecipeError("it trains in one process", got=f"{started()} processes", expected="one",
                          fix="start it without torchrun, accelerate or srun")  # fmt: skip
    axes(space or DEFAULT)  # mistakes are told before anything is loaded
    reporter = ConsoleReporter()
    quiet_libraries(reporter)
    from ..tune.search import Request
    from ..tune.search import tune as run
    from ..tune.told import advice, cells, heads, saved
    from ..tune.tune_page import BEST, write

    request = Request(source, tuple(space or DEFAULT), tuple(overrides), candidates, rungs, at_once, share_passes,
                      max_steps, out)  # fmt: skip
    folder, found = run(request, reporter)
    written = write(folder, found)
    if as_json:
        say_json({"folder": folder, **found})
        return
    print_table([name for name, _ in heads(found)], [[text for text, _ in cells(r, found)] for r in found["rows"]])
    for line in (advice(found), saved(found), f"written: {', '.join(str(path) for path in written)}"):
        typer.echo(line)
    if found["best"]:
        typer.echo(f"next:\n  afina train {shlex.quote(str(folder / BEST))}")
