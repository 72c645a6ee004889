"""`afina merge`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .guard import guarded
from .options import Device


@guarded
def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of a trained adapter.")],
    out: Annotated[Path, typer.Argument(help="Folder for the merged model and its tokenizer.")],
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a former model in OUT.")] = False,
) -> None:
    """Write the model with the adapter folded in, checked against the adapter's own outputs.

    An adapter that was trained on a quantised base is merged into the unquantised one.
    """
    from ..export.merged import against
    from ..export.merged import merge as export
    from ..train.use.trained import load_trained
    from .console import ConsoleReporter
    from .quiet import quiet_libraries

    reporter = ConsoleReporter()
    quiet_libraries(reporter)
    # The model, what is read back, and room for a layer in float32 or for the base that it was trained on.
    trained = load_trained(adapter, reporter, "none", device=device, copies=3)
    check = export(trained, out, overwrite=overwrite)
    typer.echo(
        f"merged model in {out}: read back and compared on {check.probes} texts, "
        f"largest difference {check.difference:.1e} of the largest logit, same first choice {check.agreement:.1%}"
    )
    if trained.trained_on != "none":
        other = against(load_trained(adapter, reporter, device=trained.recipe.model.device), out)
        typer.echo(
            f"against the adapter on the {trained.trained_on} base that it was trained on: largest difference "
            f"{other.difference:.1e} of the largest logit, same first choice {other.agreement:.1%}"
        )
