"""Changes of which adapters there are: made as a whole or not at all, when no other thread is calling the model."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from torch import nn

from ..combine.unload import strip
from ..hosts.tuner import Tuner

_SIZES = ("num_embeddings", "out_features", "padding_idx", "vocab_size")
_F = TypeVar("_F", bound=Callable[..., Any])


def changes(change: _F) -> _F:
    """Decorates a method of a `PeftModel` or its tuner: it waits until the calls of other threads have ended, and they
    for it.

    Raises:
        ConfigError: inside a call, while another thread waits to change adapters too.
    """

    @functools.wraps(change)
    def alone(self: Any, *args: Any, **kwargs: Any) -> Any:
        tuner = self if isinstance(self, Tuner) else self.base_model
        with tuner.scope.users.changing():
            return change(self, *args, **kwargs)

    return cast("_F", alone)


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
    modules = [(m, m.training, dict(m._modules), dict(m._parameters), _sizes(m)) for m in model.modules()]
    parameters = [(p, p.data, p.requires_grad) for p in model.parameters()]
    configs = [(c, _sizes(c)) for c in _configs(model)]
    hooks = [(held, set(held)) for held in (model._forward_pre_hooks, model._forward_hooks)]

    def undo() -> None:
        strip(model, keep_saved=False)
        for module, training, children, own, sizes in modules:
            module.training = training
            module._modules.clear()
            module._modules.update(children)
            module._parameters.clear()
            module._parameters.update(own)
            module.__dict__.update(sizes)
        for parameter, data, trained in parameters:
            if parameter.shape != data.shape:
                parameter.data = data
            parameter.requires_grad_(trained)
        for held, keys in hooks:
            for key in held.keys() - keys:
                del held[key]
        for config, sizes in configs:
            config.__dict__.update(sizes)

    return undo


def _sizes(thing: Any) -> dict[str, Any]:
    return {k: thing.__dict__[k] for k in _SIZES if k in thing.__dict__}


def _configs(model: nn.Module) -> list[Any]:
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", None)
    return [c for c in (config, text() if callable(text) else None) if hasattr(c, "__dict__")]
