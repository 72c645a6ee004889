"""`afina runs`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .as_json import AsJson, say_json
from .guard import guarded


@guarded
def runs(
    folder: Annotated[Path, typer.Argument(help="Where the runs are; folders in folders too.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder, newest first: method, task, score before and after, size, date."""
    from dataclasses import asdict
    from datetime import datetime

    from rich.console import Console
    from rich.table import Table

    from ..errors import CheckpointError
    from ..plan.usage import told_bytes
    from ..train.use.listing import find_runs

    if not folder.is_dir():
        raise CheckpointError("no such folder", where=folder.absolute(), fix="afina runs FOLDER")
    found = find_runs(folder)
    if as_json:
        say_json([asdict(run) for run in found])
        return
    if not found:
        typer.echo(f"no runs in {folder.absolute()}")
        return
    heads = ("run", "state", "method", "task", "before", "after", "size", "date")
    table = Table(*heads, box=None, pad_edge=False)
    table.columns[0].overflow = "fold"
    for run in found:
        size = told_bytes(run.size_bytes) if run.size_bytes else ""
        date = datetime.fromtimestamp(run.changed).strftime("%Y-%m-%d %H:%M")
        table.add_row(str(run.folder), run.state, run.method, run.task, run.told(run.before), run.told(run.after),
                      size, date)  # fmt: skip
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=200)
    console.print(table)
