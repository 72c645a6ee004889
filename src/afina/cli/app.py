"""The table of commands."""

from __future__ import annotations

import typer

from .chat import chat
from .compare import compare
from .convert import convert
from .data import data
from .doctor import doctor
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
    help="Fine-tune pretrained models with few parameters: train, compare, use, merge.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command(context_settings={"ignore_unknown_options": True})(train)
app.command(context_settings={"ignore_unknown_options": True})(plan)
app.command(context_settings={"ignore_unknown_options": True})(tune)
app.command(context_settings={"ignore_unknown_options": True})(compare)
app.command()(chat)
app.command()(predict)
app.command()(merge)
app.command()(convert)
app.command()(methods)
app.command()(inspect)
app.command()(data)
app.command()(runs)
app.command("import")(import_recipe)
app.command()(schema)
app.command()(doctor)
app.command()(version)
