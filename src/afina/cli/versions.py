"""`afina version`"""

from __future__ import annotations

import typer

from ..version import __version__


def version() -> None:
    """Print the versions of afina and of what it stands on."""
    from importlib import metadata

    typer.echo(f"afina {__version__}")
    for name in ("torch", "transformers", "accelerate", "safetensors"):
        try:
            typer.echo(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            typer.echo(f"{name} is not installed")
