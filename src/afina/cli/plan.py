"""`afina plan`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RecipeError
from .as_json import AsJson, say_json
from .guard import guarded
from .train import split_arguments

if TYPE_CHECKING:
    from ..train.loop.plans.whole_plan import Plan


@guarded
def plan(
    args: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE [KEY=VALUE | --KEY VALUE]...", help="A YAML file, or an embedded recipe."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help='A device that is not here, e.g. "H100 80GB", by its published figures.')
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run would take, before anything is loaded: memory by part, time, what fits."""
    from ..train.loop.plans.whole_plan import make
    from ..train.recipe.settings import load_recipe
    from .console import ConsoleReporter
    from .quiet import quiet_libraries

    source, overrides = split_arguments(args or [])
    if source is None:
        raise RecipeError("no recipe", got=args, expected='afina plan RECIPE --device "H100 80GB"')
    recipe = load_recipe(source, overrides)
    reporter = ConsoleReporter()
    quiet_libraries(reporter)
    made = make(recipe, reporter, device)
    if as_json:
        say_json(made.as_dict())
        return
    _tell(made)


def _tell(made: Plan) -> None:
    from ..plan.usage import told_bytes
    from .tables import print_table

    for line in made.lines:
        typer.echo(line)
    rows: list[list[Any]] = [[part, told_bytes(size)] for part, size in made.parts.items()]
    print_table(["memory at the peak", ""], [*rows, ["in all", told_bytes(made.bytes)]])
    for line in made.verdict:
        typer.echo(line)
