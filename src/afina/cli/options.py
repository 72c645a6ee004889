"""Options of several verbs: a device, and a base model."""

from __future__ import annotations

from typing import Annotated

import typer

Base = Annotated[
    str | None, typer.Option("--base", metavar="MODEL", help="Base model; without it the one the adapter names.")
]
Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:N, mps or xpu; auto takes a GPU where there is one.")
]
