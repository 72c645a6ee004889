"""`afina schema`"""

from __future__ import annotations

import typer

from .guard import guarded


@guarded
def schema() -> None:
    """Print the JSON schema of recipes, for editors that complete and check YAML."""
    import json

    from ..train.recipe.sections import Recipe

    typer.echo(json.dumps(Recipe.model_json_schema(), indent=2))
