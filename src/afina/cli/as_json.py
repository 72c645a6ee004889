"""Results for programs: one JSON value on standard output, where people get words."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")]


def say_json(value: Any, *, on_one_line: bool = False) -> None:
    """Print a value; paths and the like become text."""
    typer.echo(json.dumps(value, indent=None if on_one_line else 2, ensure_ascii=False, default=str))
