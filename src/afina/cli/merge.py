"""`afina merge`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import RecipeError
from .as_json import AsJson, say_json
from .guard import guarded
from .options import Base, Device

_DTYPES = ("float32", "bfloat16", "float16")


@guarded
def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of a trained adapter, or of a checkpoint in parts.")],
    out: Annotated[Path, typer.Argument(help="Folder for the merged model and its tokenizer.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; without it the base model's own.")
    ] = None,
    base: Base = None,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a former model in OUT.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the model with the adapter folded in, checked against the adapter's own outputs.

    An adapter that was trained on a quantised base is merged into the unquantised one. The parts that several
    processes wrote of a model (checkpoints of full fine-tuning with fsdp2) are put together as they are.
    """
    from dataclasses import asdict

    from ..export.merged import against, check_request
    from ..export.merged import merge as export
    from ..export.put_together import parts
    from ..train.use.trained import known, load_trained, refuse_base
    from .console import ConsoleReporter
    from .quiet import quiet_libraries

    reporter = ConsoleReporter()
    quiet_libraries(reporter)
    if written := parts(adapter):
        refuse_base(base)
        return _together(adapter, len(written), out, overwrite, as_json)
    kind_to_load = _known(dtype)
    check_request(known(adapter, base), out, overwrite)
    # The model, what is read back, and room for a layer in float32 or for the base that it was trained on.
    trained = load_trained(adapter, reporter, "none", base, dtype=kind_to_load, device=device, copies=3)
    check = export(trained, out, overwrite=overwrite)
    kind, quantised = str(trained.model.dtype).removeprefix("torch."), trained.trained_on
    other = None
    if quantised != "none":
        other = against(load_trained(adapter, reporter, base=base, device=trained.recipe.model.device), out)
    if as_json:
        say_json({"folder": out, "dtype": kind, "check": asdict(check), "trained_on": quantised,
                  "check_there": asdict(other) if other else None})  # fmt: skip
        return
    typer.echo(
        f"merged model in {out}, {kind}: read back and compared on {check.probes} inputs, "
        f"largest difference {check.difference:.1e} of the largest logit, same first choice {check.agreement:.1%}"
    )
    if other is not None:
        typer.echo(
            f"against the adapter on the {quantised} base that it was trained on: largest difference "
            f"{other.difference:.1e} of the largest logit, same first choice {other.agreement:.1%}"
        )


def _together(folder: Path, count: int, out: Path, overwrite: bool, as_json: bool) -> None:
    from ..export.put_together import put_together

    tensors = put_together(folder, out, overwrite=overwrite)
    if as_json:
        say_json({"folder": out, "parts": count, "tensors": tensors})
    else:
        typer.echo(f"model in {out}: {tensors} tensors, put together from {count} parts")


def _known(dtype: str | None) -> str:
    """The dtype to load the base in.

    Raises:
        RecipeError: there is no such.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise RecipeError("no such dtype", where="--dtype", got=dtype, expected=", ".join(_DTYPES))
    return dtype or "auto"
