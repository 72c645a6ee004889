"""Making a model what it was before an adapter's file was tried on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ..combine.unload import strip

_SIZES = ("num_embeddings", "out_features", "padding_idx", "vocab_size")


@contextlib.contextmanager
def undone_on_error(undo: Callable[[], None]) -> Iterator[None]:
    """Whatever goes wrong inside, `undo` is called."""
    done = False
    try:
        yield
        done = True
    finally:
        if not done:
            undo()


def remember(model: nn.Module) -> Callable[[], None]:
    """What gives a plain model back as it is now: its modules, what trains, training mode and vocabulary.

    Nothing is copied: hosts stand in other modules' places, and a resized vocabulary is in other tensors.
    """
    modules = [(m, m.training, dict(m._modules), _sizes(m)) for m in model.modules()]
    parameters = [(p, p.data, p.requires_grad) for p in model.parameters()]
    configs = [(c, _sizes(c)) for c in _configs(model)]

    def undo() -> None:
        strip(model, keep_saved=False)
        for module, training, children, sizes in modules:
            module.training = training
            module._modules.clear()
            module._modules.update(children)
            module.__dict__.update(sizes)
        for parameter, data, trained in parameters:
            if parameter.shape != data.shape:
                parameter.data = data
            parameter.requires_grad_(trained)
        for config, sizes in configs:
            config.__dict__.update(sizes)

    return undo


def _sizes(thing: Any) -> dict[str, Any]:
    return {k: thing.__dict__[k] for k in _SIZES if k in thing.__dict__}


def _configs(model: nn.Module) -> list[Any]:
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", None)
    return [c for c in (config, text() if callable(text) else None) if hasattr(c, "__dict__")]
