"""`afina predict`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import DataError
from .as_json import AsJson, say_json
from .guard import guarded
from .options import Device


@guarded
def predict(
    adapter: Annotated[Path, typer.Argument(help="Folder of a trained adapter.")],
    file: Annotated[Path, typer.Argument(help="JSONL, JSON or CSV with the columns of the training rows.")],
    out: Annotated[Path | None, typer.Option(help="JSONL to write; without it FILE with .predictions.jsonl.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Of an answer.")] = None,
    quantize: Annotated[
        str | None, typer.Option(help="Storage of the base (none, nf4, ...); without it the one trained on.")
    ] = None,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file to write.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a prediction for every row of FILE, and the accuracy if the rows are labelled."""
    import json

    from ..core.files.jsonfile import write_bytes
    from ..core.files.overwriting import refuse_overwriting

    target = out or file.with_name(f"{file.stem}.predictions.jsonl")
    if target.exists() and not overwrite:
        raise DataError("the file to write exists", where=target, fix="--overwrite, or --out another file")
    if not target.absolute().parent.is_dir():
        raise DataError("no such folder to write to", where=target.absolute().parent)
    refuse_overwriting(target, {"the rows": file, "the adapter": adapter}, "--out")
    from ..train.data.columns import renamed
    from ..train.data.formats import recognise
    from ..train.data.rows import read_rows
    from ..train.use.predictions import predict as answer
    from ..train.use.trained import load_trained
    from .console import ConsoleReporter
    from .quiet import quiet_libraries

    given = read_rows(file)
    reporter = ConsoleReporter()
    quiet_libraries(reporter)
    trained = load_trained(adapter, reporter, quantize, device=device)
    rows, _ = recognise(renamed(given, trained.recipe.data.columns, whole=False))
    done = answer(trained, rows, reporter, batch_size=batch_size, max_new_tokens=max_new_tokens)
    # The file's own columns, under its own names, and what is new.
    out_rows = [{**own, **{k: v for k, v in row.items() if k not in shaped}}
                for own, shaped, row in zip(given.values, rows.values, done.rows, strict=True)]  # fmt: skip
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in out_rows)
    write_bytes(target, text.encode())
    if as_json:
        scores = done.scores.as_dict() if done.scores is not None else None
        say_json({"file": target, "rows": len(done.rows), "scores": scores})
        return
    typer.echo(f"{len(done.rows)} predictions in {target}")
    if done.scores is not None:
        typer.echo(str(done.scores))
