"""`afina methods`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .as_json import AsJson, say_json
from .guard import guarded

if TYPE_CHECKING:
    from ..core.config import PeftConfig


@guarded
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with its formula and all of its settings.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the methods that `method.type` takes: what each is, what its family is for, its own learning rate."""
    from dataclasses import asdict
    from textwrap import fill

    from ..core.config import config_class
    from ..methods.about import about_methods, purpose

    found = about_methods()
    if name is not None:
        config = config_class(name, where="NAME")
        found = [about for about in found if about.config == config.__name__]
    if as_json:
        say_json([asdict(about) for about in found])
        return
    if name is not None:
        _one(found[0].name, config)
        return
    width = max(len(about.name) for about in found)
    family = ""
    for about in found:
        if about.family != family:
            family = about.family
            typer.echo(f"{family}:")
            typer.echo(fill(purpose(family), 112, initial_indent="  # ", subsequent_indent="  # "))
        paper = f"  arXiv {about.papers[0]}" if about.papers else ""
        typer.echo(f"  {about.name.lower():{width}}  {about.learning_rate:<7g} {about.summary}{paper}")


def _one(name: str, config: type[PeftConfig]) -> None:
    from dataclasses import MISSING, fields

    from ..core.config import PeftConfig
    from ..methods.about import text_of

    falls = f", falling with width ** -{config.rate_exponent:g}" if config.rate_exponent else ""
    typer.echo(f"{text_of(name)}\n\nlearning rate: {config.default_learning_rate:g} at width 2048{falls}\nsettings:")
    written = {field.name for field in fields(PeftConfig)}  # by afina, not by people
    for field in fields(config):
        if field.init and field.name not in written:
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            shown = "needed" if default is MISSING else repr(default)
            typer.echo(f"  {field.name}: {shown}  ({field.type})")
    typer.echo(f"try it:\n  afina train RECIPE method={name.lower()}")
