"""A base model's own weights, read from its files: for what has to be compared with them once they are quantised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from ...errors import CheckpointError


def weight_files(path: str | Path | None) -> list[Path]:
    """The safetensors files of a folder, or the one that `path` is.

    Raises:
        CheckpointError: there are none.
    """
    found = [] if path is None else [Path(path)] if Path(path).is_file() else sorted(Path(path).glob("*.safetensors"))
    if not found:
        raise CheckpointError("there are no unquantised weights", where="model_path", got=path,
                              expected="a .safetensors file or a folder that has some")  # fmt: skip
    return found


def original_weight(files: list[Path], name: str, prefix: str) -> Tensor:
    """A module's weight from the files; heads store names with the base model's prefix, base models without.

    Raises:
        CheckpointError: no file has it.
    """
    from safetensors import safe_open

    for file in files:
        with safe_open(str(file), "pt") as content:
            known = set(content.keys())
            key = next((k for k in _spellings(name, prefix) if k in known), None)
            if key is not None:
                tensor: Tensor = content.get_tensor(key)
                return tensor
    raise CheckpointError("the unquantised weights lack a target", where=str(files[0]), expected=f"{name}.weight")


def _spellings(name: str, prefix: str) -> Iterator[str]:
    yield f"{name}.weight"
    yield f"{prefix}.{name}.weight"
    yield f"{name.removeprefix(prefix + '.')}.weight"
