"""What a method keeps in training beside its adapter (AdaLoRA's importances), so that a resumed run goes on exactly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.hosts.tuner import shared_modules

if TYPE_CHECKING:
    from torch import Tensor, nn

_FILE = "method_state.safetensors"


def _controllers(model: nn.Module) -> dict[str, Any]:
    """Adapter name -> what holds its method's state in training, where it has any."""
    found = shared_modules(getattr(model, "base_model", model))
    return {name: shared for name, shared in found.items() if hasattr(shared, "training_state")}


def write_method_state(model: nn.Module, folder: Path) -> None:
    """Save what methods keep in training, if any does."""
    from safetensors.torch import save_file

    state = {f"{a}/{k}": t.contiguous() for a, c in _controllers(model).items() for k, t in c.training_state().items()}
    if state:
        save_file(state, folder / _FILE)


def read_method_state(model: nn.Module, folder: Path, *, before: bool) -> None:
    """Take it over again: once `before` the adapter's file is loaded, once after."""
    from safetensors.torch import load_file

    if not (folder / _FILE).is_file():
        return
    state = load_file(folder / _FILE)
    for adapter, controller in _controllers(model).items():
        own: dict[str, Tensor] = {
            k.removeprefix(f"{adapter}/"): t for k, t in state.items() if k.startswith(f"{adapter}/")
        }
        take = getattr(controller, "before_resume", None) if before else controller.load_training_state
        if take is not None:
            take(own)
