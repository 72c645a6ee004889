"""The table of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from ..version import __version__
from .chat import chat
from .compare import compare
from .convert import convert
from .data import data
from .doctor import doctor
from .export import export
from .foreign import import_recipe
from .inspect import inspect
from .list_runs import runs
from .merge import merge
from .methods import methods
from .plan import plan
from .predict import predict
from .schema import schema
from .train import train
from .tune import tune
from .versions import version

app = typer.Typer(
    name="afina",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _asked(value: bool) -> None:
    if value:
        typer.echo(f"afina {__version__}")
        raise typer.Exit


@app.callback()
def _before(
    version: Annotated[
        bool, typer.Option("--version", callback=_asked, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Fine-tune pretrained models with few parameters: train, compare, use, merge."""


app.command(context_settings={"ignore_unknown_options": True})(train)
app.command(context_settings={"ignore_unknown_options": True})(plan)
app.command(context_settings={"ignore_unknown_options": True})(tune)
app.command(context_settings={"ignore_unknown_options": True})(compare)
app.command()(chat)
app.command()(predict)
app.command()(merge)
app.command()(convert)
app.command()(export)
app.command()(methods)
app.command()(inspect)
app.command()(data)
app.command()(runs)
app.command("import")(import_recipe)
app.command()(schema)
app.command()(doctor)
app.command()(version)
