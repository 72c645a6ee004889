"""`afina version`"""

from __future__ import annotations

import typer

from ..version import __version__
from .as_json import AsJson, say_json


def version(as_json: AsJson = False) -> None:
    """Print the versions of afina and of what it stands on."""
    from importlib import metadata

    found: dict[str, str | None] = {"afina": __version__}
    for name in ("torch", "transformers", "accelerate", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    if as_json:
        say_json(found)
        return
    for name, number in found.items():
        typer.echo(f"{name} is not installed" if number is None else f"{name} {number}")
