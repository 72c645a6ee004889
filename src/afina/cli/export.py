"""`afina export`"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from .as_json import AsJson, say_json
from .convert import rank_or_share
from .guard import guarded
from .options import Base

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
    rank: Annotated[
        str | None, typer.Option("--rank", "-r", help="Make LoRA of this rank, or of this share of the update, first.")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--target", help="Python, or folder with node_modules, of the program that loads the format."),
    ] = None,
    base: Base = None,
    licence: Annotated[str | None, typer.Option(help="Of the adapter, for a card: apache-2.0.")] = None,
    hub_base: Annotated[str | None, typer.Option(help="The base's id on the hub, for a card.")] = None,
    repository: Annotated[
        str | None, typer.Option("--push", help="OWNER/NAME on the hub that the folder is uploaded to.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --push: list what would be uploaded.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a former export in the folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a trained adapter in another program's format, loaded there and compared before it counts as made.

    Where that program is not installed, the export is written and called not compared.
    """
    from ..export.as_lora import as_lora
    from ..export.contract import Subject
    from ..export.formats.all_formats import format_named
    from ..export.formats.hub_folder import check_card
    from ..export.make import check_known, check_read, check_request, make
    from ..export.push import listed, push
    from ..export.target import Environment
    from ..train.use.trained import known, load_trained
    from .console import ConsoleReporter
    from .quiet import quiet_libraries

    wanted, environment, note = format_named(to), Environment(target), None
    size_of_lora = None if rank is None else rank_or_share(rank)
    check_request(wanted, dtype, out, overwrite)
    _check_upload(repository, dry_run, private)
    for option, given in {"--licence": licence, "--hub-base": hub_base}.items():
        if given is not None and wanted.name != "hub":
            raise ConfigError("only the hub's card has it", where=option, got=f"--to {wanted.name}", fix="--to hub")
    there = known(adapter, base)
    if wanted.name == "hub":
        check_card(licence, hub_base, there)
    check_known(wanted, there, out, as_lora=rank is not None)
    reporter = ConsoleReporter()
    quiet_libraries(reporter)
    trained = load_trained(adapter, reporter, "none", base, dtype="auto", device="cpu",
                           before=partial(check_read, wanted, there))  # fmt: skip
    if size_of_lora is not None:
        trained, retained = as_lora(trained, size_of_lora)
        note = f"as LoRA: {retained}"
    subject = Subject(trained, dtype, environment, licence=licence, hub_base=hub_base, note=note)
    found, files = make(wanted, subject, out, overwrite=overwrite), listed(out)
    size = sum(length for _, length in files)
    where = push(out, repository, private=private) if repository is not None and not dry_run else None
    if as_json:
        from dataclasses import asdict

        say_json({"folder": out, "format": wanted.name, "bytes": size, "files": dict(files),
                  "pushed": where, "compared": found.missing is None, **asdict(found)})  # fmt: skip
        return
    typer.echo(f"{wanted.name} in {out}: {len(files)} files, {size / 1e6:,.1f} MB")
    typer.echo(_told(found))
    if repository is not None:
        typer.echo(f"uploaded: {where}" if where else f"would be uploaded to {repository}:")
    for name, length in files if dry_run else ():
        typer.echo(f"  {name}  {length:,} bytes")


def _check_upload(repository: str | None, dry_run: bool, private: bool) -> None:
    """Refuse options of an upload that there is none of.

    Raises:
        ConfigError: no repository, or no name of one.
    """
    from ..export.push import check_repository

    if repository is not None:
        check_repository(repository)
    elif dry_run or private:
        raise ConfigError("it says nothing without a repository", where="--dry-run" if dry_run else "--private",
                          fix="--push OWNER/NAME")  # fmt: skip


def _told(found: Comparison) -> str:
    if found.missing is not None:
        return f"written, NOT compared: {found.missing}" + (f"; {found.note}" if found.note else "")
    assert found.difference is not None
    held = "told, not held to anything" if found.tolerance is None else f"at most {found.tolerance:.0e}"
    note = f"; {found.note}" if found.note else ""
    same = "" if found.same is None else f", {found.same:.0%} the same"
    return (
        f"loaded by {found.target} {found.version} and compared with the adapter: {found.what}{same}; "
        f"largest difference {found.difference:.1e} of the largest logit ({held}){note}"
    )
