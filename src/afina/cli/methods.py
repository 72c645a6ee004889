"""`afina methods`"""

from __future__ import annotations

from typing import Annotated

import typer

from .guard import guarded


@guarded
def methods(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for programs.")] = False,
) -> None:
    """List the methods that `method.type` takes, with what each is and its own learning rate."""
    import json
    from dataclasses import asdict

    from ..methods.about import about_methods

    found = about_methods()
    if as_json:
        typer.echo(json.dumps([asdict(about) for about in found], indent=2, ensure_ascii=False))
        return
    width = max(len(about.name) for about in found)
    family = ""
    for about in found:
        if about.family != family:
            family = about.family
            typer.echo(f"{family}:")
        paper = f"  arXiv {about.papers[0]}" if about.papers else ""
        typer.echo(f"  {about.name.lower():{width}}  {about.learning_rate:<7g} {about.summary}{paper}")
