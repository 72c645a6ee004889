"""Watching a model while a data-driven start gathers its statistics; the model is left as it was found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...core.hosts.host import Host
from ...core.inject import targets
from ...core.layers.recognise import base_weight
from ...core.layers.weights import BaseWeight
from ...errors import ConfigError, TargetError


def linear_targets(model: nn.Module, config: Any) -> dict[str, nn.Module]:
    """The linear layers that a config adapts, or the hosts that already stand in their places, by name.

    Raises:
        TargetError: the config matches no linear layer.
    """
    found = {s.name: s.module for s in targets.select_slots(model, config) if targets.is_linear(plain(s.module))}
    if not found:
        raise TargetError("no target is a linear layer, which this start is defined for", where="target_modules",
                          got=config.target_modules)  # fmt: skip
    return found


def plain(module: nn.Module) -> nn.Module:
    """The layer itself, without the hosts around it."""
    while isinstance(module, Host):
        module = module.base_layer
    return module


def weight_of(module: nn.Module) -> BaseWeight:
    """A target's own weight as an operator."""
    return base_weight(plain(module))


def rows_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A linear layer's input as float32 rows (N, in)."""
    x: Tensor = args[0] if args else next(iter(kwargs.values()))
    return x.detach().reshape(-1, x.shape[-1]).float()


@contextlib.contextmanager
def watching(modules: dict[str, nn.Module], see: Callable[[str, Any, Any], None]) -> Iterator[dict[str, Any]]:
    """Call `see(name, args, kwargs)` before each forward of the given modules.

    Yields:
        The hooks by name, so that single ones can be removed early; all are gone on leaving.
    """

    def hook_for(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: see(name, args, kwargs)

    hooks = {n: m.register_forward_pre_hook(hook_for(n), with_kwargs=True) for n, m in modules.items()}
    try:
        yield hooks
    finally:
        for hook in hooks.values():
            hook.remove()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode, and back to each module's own mode."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def requiring_grad(model: nn.Module, wanted: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let exactly the given parameters require gradients; flags and gradients are restored afterwards."""
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    chosen = {id(p) for p in wanted}
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(id(parameter) in chosen)
            parameter.grad = None
        yield
    finally:
        for parameter, flag, grad in before:
            parameter.requires_grad_(flag)
            parameter.grad = grad


def check_seen(seen: Iterable[str], wanted: Iterable[str], what: str) -> None:
    """Refuse when a target was never reached.

    Raises:
        ConfigError: names the targets.
    """
    missing = sorted(set(wanted) - set(seen))
    if missing:
        raise ConfigError(f"{len(missing)} targets saw no {what}", where=", ".join(missing[:5]),
                          fix="run the model on data that reaches them, or exclude them")  # fmt: skip


def load_statistics(path: str | Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read saved statistics and compare their names and shapes with the targets.

    Raises:
        ConfigError: a target is missing or has another shape.
    """
    from safetensors.torch import load_file

    tensors = load_file(str(path))
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else "nothing"
        if found != shape:
            raise ConfigError("the saved statistics are for another model or other targets", where=f"{path}: {name}",
                              got=found, expected=shape, fix="delete the file to gather them again")  # fmt: skip
    return {n: tensors[n] for n in shapes}


def save_statistics(path: str | Path, statistics: dict[str, Tensor]) -> None:
    """Write statistics as safetensors."""
    from safetensors.torch import save_file

    save_file({n: t.contiguous().clone() for n, t in statistics.items()}, str(path))
