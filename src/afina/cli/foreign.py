"""`afina import`: recipes and adapters of other programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.files.unwritable import check_place
from ..errors import ConfigError, RecipeError
from .as_json import AsJson, say_json
from .guard import guarded

if TYPE_CHECKING:
    from ..train.recipe.dialects import Imported


@guarded
def import_recipe(
    file: Annotated[
        Path,
        typer.Argument(
            help="LLaMA-Factory's, Axolotl's or torchtune's YAML, a PEFT script's command; or the folder of an adapter."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="File to write; without it a recipe is printed. Folder, for an adapter.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", help="llama-factory, axolotl, torchtune or peft-script; without it by the keys."),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="Of an adapter: its base model, to be named.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Of an adapter: read a pickle's tensors; code in it is refused.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is to be written.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn another tool's recipe into one of ours, and name what has no counterpart; or another program's adapter."""
    if file.is_dir():
        from .foreign_adapter import import_adapter

        if source is not None:
            raise ConfigError("it says nothing of an adapter", where="--from", got=source)
        import_adapter(file, out, base, allow_pickle, overwrite, as_json)
        return
    if base is not None or allow_pickle:
        raise ConfigError("it says nothing of a recipe", where="--base" if base is not None else "--allow-pickle",
                          fix="give the folder of an adapter")  # fmt: skip
    from ..train.recipe.dialects import DIALECTS, import_recipe, written
    from ..train.recipe.settings import recipe_of_text

    if source is not None and source not in DIALECTS:
        raise RecipeError("no such tool", where="--from", got=source, expected=", ".join(DIALECTS))
    if out is not None:
        check_place(out)
    if out is not None and out.exists() and not overwrite:
        raise RecipeError("the file to write exists", where=out, fix="--overwrite, or --out another file")
    found = import_recipe(file, source)
    if out is not None:
        _seen_from(found, out.absolute().parent)
    text = written(found, file.name)
    recipe_of_text(text, f"{file}, translated")
    if as_json:
        say_json({"from": found.dialect, "recipe": found.values, "look": found.look, "left": found.left})
    elif out is None:
        typer.echo(text, nl=False)
    if out is None:
        return
    out.write_text(text, encoding="utf-8")
    if not as_json:
        typer.echo(f"{out}: {len(found.values)} settings from {found.dialect}, {len(found.left)} without a counterpart")
        for line in [*found.look, *(f"{key}: {why}" for key, why in found.left.items())]:
            typer.echo(f"  {line}")
        typer.echo(f"next:\n  afina train {out} --dry-run")


def _seen_from(found: Imported, folder: Path) -> None:
    """Paths that count from the current folder, as they are from the recipe's."""
    for key in ("model.path", "model.adapter", "data.train", "data.eval", "output.dir"):
        value = found.values.get(key)
        for holder, name in [(part, "path") for part in value] if isinstance(value, list) else [(found.values, key)]:
            path = Path(str(holder.get(name, "/"))).expanduser()
            if not path.is_absolute() and (path.exists() or key == "output.dir"):
                holder[name] = os.path.relpath(path.absolute(), folder)
