"""The option that names a device."""

from __future__ import annotations

from typing import Annotated

import typer

Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:N, mps or xpu; auto takes a GPU where there is one.")
]
