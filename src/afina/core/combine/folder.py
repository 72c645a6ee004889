"""Hundreds of adapters on one model, from a folder of folders."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import AfinaError, AfinaWarning, CheckpointError, NameTakenError
from ..config import CONFIG_NAME
from ..disk.checkpoint import load_adapter, open_adapter
from ..files.allocation import AllocationLimit
from ..files.budget import reading
from ..hosts import tuner
from ..validate import check_name

if TYPE_CHECKING:
    from ..model.peft_model import PeftModel


def adapter_folders(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Name -> path of every adapter in a folder, sorted; an adapter's name is that of its own folder.

    Raises:
        CheckpointError: there is none.
    """
    root = Path(folder)
    found = {p.parent.name: p.parent for p in sorted(root.glob(f"*/{CONFIG_NAME}"))}
    if not found:
        raise CheckpointError("no adapters here", where=root, expected=f"NAME/{CONFIG_NAME}, one folder for each")
    return found


def load_adapters(
    model: PeftModel,
    folder: str | os.PathLike[str] | Mapping[str, Path],
    *,
    skip_faulty: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Load every adapter of a folder under its folder's name; none is activated, none trains.

    Each is opened, checked and loaded in its turn, whole or not at all; those before a faulty one stay.

    Args:
        model: a `PeftModel`.
        folder: holds a folder for each adapter, as `save_pretrained` writes them; or the names with their folders.
        skip_faulty: go on past adapters that cannot be loaded, with a warning for each.
        progress: called with the number done and the number in all.

    Returns:
        The names of those that were loaded.

    Raises:
        CheckpointError: there are none, or one is damaged or does not fit.
        NameTakenError: a name is taken or unusable.
    """
    places = folder if isinstance(folder, Mapping) else adapter_folders(folder)
    names: list[str] = []
    before = tuple(model.active_adapters)
    users = model.base_model.scope.users
    with tuner.training_kept(model):
        try:
            for number, (name, place) in enumerate(places.items(), 1):
                try:
                    with users.changing():
                        _load(model, name, place)
                    names.append(name)
                except AfinaError as error:
                    if not skip_faulty:
                        raise
                    warnings.warn(f"adapter {name!r} is left out: {error}", AfinaWarning, stacklevel=2)
                progress(number, len(places))
        finally:
            # Once for all: it visits every adapter on every layer.
            with users.changing():
                tuner.activate(model.base_model, before)
    return names


def _load(model: PeftModel, name: str, place: Path) -> None:
    check_name(name)
    if name in model.peft_config:
        raise NameTakenError("an adapter of this name is loaded", where=place, got=name, fix="rename the folder")
    before = set(model.peft_config)
    done = False
    try:
        file = open_adapter(place)
        file.config.inference_mode = True
        with reading(file.path, file.config_path):
            with AllocationLimit(model.get_base_model(), file.header.shapes):
                model._inject(name, file.config, low_memory=True)
            load_adapter(model, name, file)
        done = True
    finally:
        if not done:
            model._delete_all_but(before)
