"""Cartridges of several texts as one: their tables one after the other (Eyuboglu et al. 2025, arXiv 2506.06266)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...core.disk.checkpoint import open_adapter, write_pair
from ...errors import ConfigError
from .cartridge import CartridgeConfig

PUBLIC = ("compose_cartridge_adapters",)
_SAME = ("task_type", "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules")


def compose_cartridge_adapters(
    adapter_paths: Sequence[str | Path], *, output_path: str | Path, safe_serialization: bool = True
) -> None:
    """Write a cartridge that holds those of several files, in their order; the first one's frozen tokens stay frozen.

    Args:
        adapter_paths: folders of cartridges for the same base.
        output_path: the folder of the new one.
        safe_serialization: as elsewhere, no pickle is written.

    Raises:
        ConfigError: fewer than two, another method, other sizes, or False for `safe_serialization`.
        CheckpointError: a file is missing or damaged.
    """
    if not safe_serialization:
        raise ConfigError("no pickle is written", where="safe_serialization", got=False, expected="True")
    if len(adapter_paths) < 2:
        raise ConfigError("two cartridges at least are needed", where="adapter_paths", got=len(adapter_paths))
    files = [open_adapter(path) for path in adapter_paths]
    first = files[0].config
    for path, file in zip(adapter_paths, files, strict=True):
        if not isinstance(file.config, CartridgeConfig):
            raise ConfigError("no cartridge", where=path, got=str(file.config.peft_type))
        for key in _SAME:
            if getattr(file.config, key) != getattr(first, key):
                raise ConfigError("the cartridges are not for the same base", where=f"{path}: {key}",
                                  got=getattr(file.config, key), expected=getattr(first, key))  # fmt: skip
        if file.notes.get("base") != files[0].notes.get("base"):
            raise ConfigError("the cartridges are not for the same base", where=path, got="another fingerprint")
    assert isinstance(first, CartridgeConfig)
    table = torch.cat([file.tensors()["prompt_embeddings"] for file in files])
    config = replace(first, num_virtual_tokens=len(table))
    notes = {"base": files[0].notes["base"]} if "base" in files[0].notes else {}
    write_pair(Path(output_path), config, {"prompt_embeddings": table}, notes)
