"""The table of commands."""

from __future__ import annotations

import os
import sys

import typer

from .chat import chat
from .guard import report_bug
from .merge import merge
from .predict import predict
from .train import train
from .version import version

app = typer.Typer(
    name="afina",
    help="Fine-tune pretrained models with few parameters: train, use, merge.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command(context_settings={"ignore_unknown_options": True})(train)
app.command()(chat)
app.command()(predict)
app.command()(merge)
app.command()(version)


def run() -> None:
    """Run the command line of this process."""
    sys.excepthook = report_bug
    # Threads that spin while they wait make torch up to four times slower wherever another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
