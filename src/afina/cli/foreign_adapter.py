"""`afina import FOLDER`: another program's adapter, in the layout that PEFT shares with afina."""

from __future__ import annotations

from pathlib import Path

import typer

from ..errors import CheckpointError, ConfigError
from .as_json import say_json


def import_adapter(
    folder: Path, out: Path | None, base: str | None, allow_pickle: bool, overwrite: bool, as_json: bool
) -> None:
    """Read the adapter in `folder`, check it as far as that needs no model, and write it to `out`.

    Raises:
        ConfigError: no folder to write is given.
        CheckpointError: there is no adapter, it is damaged, or only its model tells what its tensors are.
    """
    from ..core.disk.checkpoint import open_adapter, write_pair
    from ..core.files.overwriting import refuse_occupied, refuse_overwriting

    if out is None:
        raise ConfigError("no folder to write the adapter to", where="--out", fix="afina import FOLDER --out ANOTHER")
    refuse_overwriting(out, {"the adapter": folder}, "--out")
    refuse_occupied(out, "an adapter", (out / "adapter_config.json").is_file(), overwrite)
    _refuse_others(folder)
    file = open_adapter(folder, allow_pickle=allow_pickle)
    if file.needs_model:
        raise CheckpointError("its tensors have names that only its model tells", where=folder,
                              fix="PeftModel.from_pretrained(model, FOLDER), then save_pretrained")  # fmt: skip
    if base is not None:
        file.config.base_model_name_or_path = base
    tensors = file.stored()
    write_pair(out, file.config, tensors, {"base": file.notes["base"]} if "base" in file.notes else {})
    named = file.config.base_model_name_or_path
    if as_json:
        say_json({"folder": out, "peft_type": file.config.peft_type, "tensors": len(tensors), "base": named,
                  "from": file.path.name})  # fmt: skip
        return
    typer.echo(f"{file.config.peft_type} in {out}: {len(tensors)} tensors of {file.path.name}")
    if file.path.suffix == ".bin":
        typer.echo("  only tensors were read of the pickle; code in it would have been refused")
    if named is None:
        typer.echo("  its base model is not named: --base MODEL")
    else:
        typer.echo(f"next:\n  afina chat {out}")


def _refuse_others(folder: Path) -> None:
    """Refuse folders that hold something else than an adapter.

    Raises:
        CheckpointError: says what.
    """
    if (folder / "adapter_config.json").exists():
        return
    if any(folder.glob("*.gguf")):
        raise CheckpointError("GGUF is written, not read", where=folder, fix="export the adapter's own folder anew")
    if (folder / "config.json").exists():
        raise CheckpointError("a whole model, in which no adapter is", where=folder,
                              fix="name it as model.path, or load it by transformers")  # fmt: skip
