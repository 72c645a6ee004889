"""Adapters of other programs, whose tensors are in memory once their file was opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from ...errors import CheckpointError
from ..config import CONFIG_NAME, PeftConfig
from ..files.jsonfile import read_json_object
from ..files.tensorfile import Header, check_finite
from .adapter_file import AdapterFile


@dataclass
class HeldFile(AdapterFile):
    """An adapter whose tensors, by their names on disk, are in memory."""

    held: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)

    def stored(self) -> dict[str, Tensor]:
        """All tensors, by their names in files of this library's layout.

        Raises:
            NumericError: one is not finite.
        """
        check_finite(dict(self.held), self.path)
        return dict(self.held)


def header_of(tensors: Mapping[str, Tensor]) -> Header:
    """What the header of a file with these tensors would say."""
    kinds = {n: "F32" if t.is_floating_point() else str(t.dtype) for n, t in tensors.items()}
    return Header({n: tuple(t.shape) for n, t in tensors.items()}, kinds, {})


def open_pickle(path: Path, config: PeftConfig | None, allow: bool) -> HeldFile:
    """The adapter of a pickle beside its config.

    Args:
        config: what to take in place of that.
        allow: whether a pickle may be read at all.

    Raises:
        CheckpointError: it may not, or holds something else than tensors.
    """
    if not allow:
        raise CheckpointError(
            "only a pickle is here, and loading a pickle can run code", where=path,
            fix=f"allow_pickle=True, or afina import {path.parent} --allow-pickle --out DIR: tensors are read, no code",
        )  # fmt: skip
    held, config_path = unpickled(path), path.with_name(CONFIG_NAME)
    return HeldFile(path, config or PeftConfig.from_dict(read_json_object(config_path), where=config_path),
                    header_of(held), held=held)  # fmt: skip


def unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle, read by torch's `weights_only`, which refuses code.

    Raises:
        CheckpointError: it holds something else.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError("not a file of tensors", where=path, got=str(error).partition("\n")[0][:200]) from None
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise CheckpointError("not a file of tensors", where=path, got=type(found).__name__)
    return {str(n): t.detach().clone() for n, t in found.items()}  # of no storage that is larger or shared
