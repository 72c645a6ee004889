"""`afina predict`"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..devices.place import place
from ..devices.ranks import is_first, joined, take_over_slurm
from ..errors import DataError, RecipeError
from .as_json import AsJson, say_json
from .guard import guarded
from .options import Base, Device

if TYPE_CHECKING:
    from ..train.tasks.base import Predictions, Task

_AGAIN = "run it again: nothing was written"


@guarded
def predict(
    adapter: Annotated[Path, typer.Argument(help="Folder of a trained adapter.")],
    source: Annotated[
        str,
        typer.Argument(metavar="FILE", help="What data.train takes, with the columns of the training rows."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSONL to write; without it FILE.predictions.jsonl (of images, sounds and references: in this folder)."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Of an answer.")] = None,
    quantize: Annotated[
        str | None, typer.Option(help="Storage of the base (none, nf4, ...); without it the one trained on.")
    ] = None,
    base: Base = None,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file to write.")] = False,
    processes: Annotated[
        int, typer.Option(help="Processes that share the rows, on a device each, or on the processor's cores.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Write a prediction for every row of FILE, and the accuracy if the rows are labelled. Images that are drawn stand
    in a folder beside the file to write."""
    from ..core.files.overwriting import refuse_overwriting
    from ..core.files.unwritable import check_place
    from ..train.data.readers.media_rows import is_medium
    from ..train.data.split import is_named

    take_over_slurm()
    # A file of rows in a folder of images or sounds would be taken for what the folder holds.
    file = Path(source).expanduser()
    elsewhere = not file.exists() and is_named(source)
    beside = Path() if elsewhere or file.is_dir() or is_medium(file) else file.parent
    target = out or beside / f"{Path(file.name.partition('#')[0]).stem or file.absolute().stem}.predictions.jsonl"
    check_place(target)
    if target.is_dir():
        raise DataError("a folder is here, and a file is to be written", where=target, fix="--out FILE")
    if target.exists() and not overwrite:
        raise DataError("the file to write exists", where=target, fix="--overwrite, or --out another file")
    if not target.absolute().parent.is_dir():
        raise DataError("no such folder to write to", where=target.absolute().parent)
    if not file.exists() and not elsewhere:
        raise DataError("no such file or folder", where=file)
    refuse_overwriting(target, {"the rows": file, "the adapter": adapter}, "--out")
    task = _checked(adapter, base, quantize, max_new_tokens)
    if task.makes_files and _files_of(target).exists() and not overwrite:
        raise DataError("the folder for files that are made exists", where=_files_of(target),
                        fix="--overwrite, or --out another file")  # fmt: skip
    if processes != 1:
        from .launch import launch

        given = {"out": out, "batch-size": batch_size, "max-new-tokens": max_new_tokens, "quantize": quantize,
                 "base": base, "device": device}  # fmt: skip
        words = ["predict", str(adapter), source, *(f"--{k}={v}" for k, v in given.items() if v is not None)]
        words += [f"--{name}" for name, on in {"overwrite": overwrite, "json": as_json}.items() if on]
        raise typer.Exit(launch(words, processes, device, fix=_AGAIN))
    with joined(place(device), _AGAIN):
        done = _predicted(adapter, base, source, target, quantize, device, batch_size, max_new_tokens)
    if not is_first():
        return
    if as_json:
        scores = done.scores.as_dict() if done.scores is not None else None
        say_json({"file": target, "rows": len(done.rows), "scores": scores})
        return
    typer.echo(f"{len(done.rows)} predictions in {target}" + (f", files in {_files_of(target)}" if done.files else ""))
    if done.scores is not None:
        typer.echo(str(done.scores))


def _files_of(target: Path) -> Path:
    """The folder of what was made beside the rows."""
    return target.with_name(f"{target.stem}.files")


def _checked(adapter: Path, base: str | None, quantize: str | None, max_new_tokens: int | None) -> Task:
    """The adapter's task, after what its files alone tell to be wrong was refused.

    Raises:
        CheckpointError: it is no adapter.
        RecipeError: no such storage, or a limit of text where none is written.
    """
    from ..train.base import quantize as storages
    from ..train.use.trained import known

    task = known(adapter, base).task
    if max_new_tokens is not None and (task.judges or not task.writes):
        raise RecipeError("predictions of this task are no text that is written", where="--max-new-tokens",
                          got=task.name, fix="leave it out")  # fmt: skip
    if quantize is not None:
        storages.known(quantize)
    return task


def _predicted(
    adapter: Path, base: str | None, source: str, target: Path, quantize: str | None, device: str, batch_size: int,
    max_new_tokens: int | None,
) -> Predictions:  # fmt: skip
    """The predictions, in every process; the first one has written them."""
    import json

    from ..core.files.jsonfile import write_bytes
    from ..train.data.columns import renamed
    from ..train.data.formats import recognise
    from ..train.data.split import drawn_rows
    from ..train.report.events import Reporter
    from ..train.use.predictions import predict as answer
    from ..train.use.trained import known, load_trained
    from .console import ConsoleReporter
    from .quiet import quiet_libraries

    reporter = ConsoleReporter() if is_first() else Reporter()
    given = drawn_rows(source, reporter)
    quiet_libraries(reporter)
    there = known(adapter, base)
    rows, _ = recognise(renamed(given, there.recipe.data.columns, whole=False))
    trained = load_trained(adapter, reporter, quantize, base, device=device,
                           before=partial(there.task.check_rows, rows))  # fmt: skip
    done = answer(trained, rows, reporter, batch_size=batch_size, max_new_tokens=max_new_tokens)
    if is_first():
        # The file's own columns, under its own names, and what is new, also where the file has a column of that name.
        new = [{k: v for k, v in row.items() if k not in shaped or v is not shaped[k]}
               for shaped, row in zip(rows.values, done.rows, strict=True)]  # fmt: skip
        out_rows = [{**own, **more} for own, more in zip(given.values, new, strict=True)]
        if replaced := {k for own, more in zip(given.values, new, strict=True) for k in own.keys() & more}:
            reporter.warn(f"replaced in what is written: the file's own {', '.join(map(repr, sorted(replaced)))}")
        lines = [json.dumps(row, ensure_ascii=False, default=_not_text) for row in out_rows]
        if done.files:
            _files_of(target).mkdir(exist_ok=True)
        for name, content in done.files.items():
            write_bytes(_files_of(target) / name, content)
        write_bytes(target, "".join(f"{line}\n" for line in lines).encode())
    return done


def _not_text(value: object) -> str:
    """What stands in the place of an image's or a sound's bytes."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
