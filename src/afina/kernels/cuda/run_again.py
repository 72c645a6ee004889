"""Layers that run again in the backward pass (gradient checkpointing), in steps that are recorded.

Torch looks at the states of random numbers before such a layer runs and puts them back when it runs again; neither can
be recorded. Where nothing is drawn it need not, and steps that draw are not recorded with such layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from ...core.hosts.host import Host
from ...errors import AfinaError

_FUNCTION = "_gradient_checkpointing_func"


class RunAgain:
    """The layers of a transformers model that can."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        # Some have it in their class, others once it was asked for.
        self.layers: list[Any] = [
            m for m in modules if not isinstance(m, Host) and hasattr(m, "gradient_checkpointing")
        ]

    def state(self) -> tuple[Any, ...]:
        """Which of them do, and how."""
        return tuple(id(_function(layer)) for layer in self.layers if layer.gradient_checkpointing)

    @contextlib.contextmanager
    def without_draws(self) -> Iterator[None]:
        """Let them run again without a look at random numbers.

        Raises:
            AfinaError: they run in another way than torch's own that autograd is told of.
        """
        on = [layer for layer in self.layers if layer.gradient_checkpointing and _function(layer) is not None]
        own = [layer.__dict__.get(_FUNCTION) for layer in on]
        for how in own:
            if not isinstance(how, partial) or how.func is not checkpoint or how.keywords.get("use_reentrant", True):
                raise AfinaError("layers run again in the backward pass in a way that cannot be recorded",
                                 where="gradient checkpointing", fix="use_reentrant=False")  # fmt: skip
        try:
            for layer, how in zip(on, own, strict=True):
                layer.__dict__[_FUNCTION] = partial(how, preserve_rng_state=False)
            yield
        finally:
            for layer, how in zip(on, own, strict=True):
                layer.__dict__[_FUNCTION] = how


def _function(layer: Any) -> Callable[..., Any] | None:
    found: Callable[..., Any] | None = getattr(layer, _FUNCTION, None)
    return found
