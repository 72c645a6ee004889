"""`afina export`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .as_json import AsJson, say_json
from .guard import guarded

if TYPE_CHECKING:
    from ..export.contract import Comparison


@guarded
def export(
    adapter: Annotated[Path, typer.Argument(help="Folder of a trained adapter.")],
    to: Annotated[str, typer.Option("--to", help="The format; docs/exports.md has what each holds.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    dtype: Annotated[
        str | None, typer.Option(help="How numbers are stored, where the format has a choice (gguf: f32 to q4_0).")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--target", help="Python, or folder with node_modules, of the program that loads the format."),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Base model; without it the one the adapter names.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a former export in the folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a trained adapter in another program's format, loaded there and compared before it counts as made.

    Where that program is not installed, the export is written and called not compared.
    """
    from ..export.contract import Subject
    from ..export.formats.all_formats import format_named
    from ..export.make import check_request, make
    from ..export.target import Environment
    from ..train.use.trained import load_trained
    from .console import ConsoleReporter
    from .quiet import quiet_libraries

    wanted, environment = format_named(to), Environment(target)
    check_request(wanted, dtype, out, overwrite)
    reporter = ConsoleReporter()
    quiet_libraries(reporter)
    trained = load_trained(adapter, reporter, "none", base, dtype="auto", device="cpu")
    found = make(wanted, Subject(trained, dtype, environment), out, overwrite=overwrite)
    files = sorted(p for p in out.rglob("*") if p.is_file())
    size = sum(p.stat().st_size for p in files)
    if as_json:
        from dataclasses import asdict

        say_json({"folder": out, "format": wanted.name, "bytes": size, "files": [p.name for p in files],
                  "compared": found.missing is None, **asdict(found)})  # fmt: skip
        return
    typer.echo(f"{wanted.name} in {out}: {len(files)} files, {size / 1e6:,.1f} MB")
    typer.echo(_told(found))


def _told(found: Comparison) -> str:
    if found.missing is not None:
        return f"written, NOT compared: {found.missing}"
    assert found.difference is not None
    assert found.tolerance is not None
    same = "" if found.same is None else f", {found.same:.0%} the same"
    return (
        f"loaded by {found.target} {found.version} and compared with the adapter: {found.what}{same}; "
        f"largest difference {found.difference:.1e} of the largest logit (at most {found.tolerance:.0e})"
    )
