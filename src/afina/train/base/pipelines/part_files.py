"""Files of a base: those of its folder, and of a pipeline's those of its parts."""

from __future__ import annotations

from pathlib import Path

INDEX = "model_index.json"
"""What the folder of a pipeline of diffusers has."""


def weights_of(folder: Path, pattern: str = "*.safetensors") -> list[Path]:
    """The files in a base's folder whose names fit, in a pipeline's parts too."""
    deep = folder.glob(f"*/{pattern}") if (folder / INDEX).is_file() else ()
    return [*folder.glob(pattern), *deep]
