"""Which checkpoints are whole: a manifest with every file's size is written last. And what a method keeps in training
beside its adapter (AdaLoRA's importances), so that a resumed run goes on exactly."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_STATE = "method_state.safetensors"
_MANIFEST = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(folder: Path) -> None:
    """Write the manifest of a checkpoint, atomically."""
    sizes = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    sizes.pop(_MANIFEST, None)
    partial = folder / f".{_MANIFEST}"
    with partial.open("w", encoding="utf-8") as file:
        json.dump({"sizes": sizes}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(folder / _MANIFEST)


def is_complete(folder: Path) -> bool:
    """Whether every file of the checkpoint is there in its full size."""
    try:
        sizes = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def newest_complete(run: Path) -> Path | None:
    """The checkpoint with the most steps that is whole, or None."""
    found = [(int(m[1]), path) for path in run.glob("checkpoint-*") if (m := _NAME.fullmatch(path.name))]
    return next((path for _, path in sorted(found, reverse=True) if is_complete(path)), None)


def _controllers(model: nn.Module) -> dict[str, Any]:
    """Adapter name -> what holds its method's state in training, where it has any."""
    from ...core.hosts.tuner import shared_modules

    found = shared_modules(getattr(model, "base_model", model))
    return {name: shared for name, shared in found.items() if hasattr(shared, "training_state")}


def write_method_state(model: nn.Module, folder: Path) -> None:
    """Save what methods keep in training, if any does."""
    from safetensors.torch import save_file

    state = {f"{a}/{k}": t.contiguous() for a, c in _controllers(model).items() for k, t in c.training_state().items()}
    if state:
        save_file(state, folder / _STATE)


def read_method_state(model: nn.Module, folder: Path, *, before: bool) -> None:
    """Take it over again: once `before` the adapter's file is loaded, once after."""
    from safetensors.torch import load_file

    if not (folder / _STATE).is_file():
        return
    state = load_file(folder / _STATE)
    for adapter, controller in _controllers(model).items():
        own: dict[str, Tensor] = {
            k.removeprefix(f"{adapter}/"): t for k, t in state.items() if k.startswith(f"{adapter}/")
        }
        take = getattr(controller, "before_resume", None) if before else controller.load_training_state
        if take is not None:
            take(own)
