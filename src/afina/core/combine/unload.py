"""Taking adapters and hosts away: with what was merged into the layers, or with the original bits; tied embeddings stay
honest."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from ...errors import AfinaWarning, NameTakenError
from ..hosts.calls import unwatch
from ..hosts.host import Host, hosts
from ..hosts.host_kinds import ModulesToSaveWrapper
from ..hosts.routing import routers
from ..hosts.tuner import Tuner, merge
from ..hosts.walk import shared_holder
from ..inject.slots import slots
from .gained_biases import settle_gained


def strip(model: nn.Module, *, only_empty: bool = False, keep_saved: bool = True) -> None:
    """Take hosts away: each place gets its base layer, with what was merged into it.

    Args:
        only_empty: only hosts without any adapter.
        keep_saved: active trained copies (`modules_to_save`) replace their originals.
    """
    for router in routers(model).values() if not only_empty else ():
        router.stop()
    for slot in list(slots(model)):
        module: Any = slot.module
        kept: list[Host] = []
        while isinstance(module, Host):
            if only_empty and module.names():
                kept.append(module)
                module = module.base_layer
            else:
                module = module.result(keep_saved)
        if not only_empty or (not kept and slot.module is not module):
            slot.put(module)
    if not any(isinstance(host, ModulesToSaveWrapper) for _, host in hosts(model)):
        unwatch(model.model if isinstance(model, Tuner) else model)


def delete(model: nn.Module, name: str) -> None:
    """Remove an adapter; hosts left without one are removed too.

    Raises:
        NameTakenError: another adapter routes to it.
    """
    user = next((n for n, r in routers(model).items() if name in r.routes), None)
    if user is not None:
        raise NameTakenError("another adapter routes to this one", where=name, got=user, fix=f"delete {user!r} first")
    for _, host in hosts(model):
        host.remove(name)
    strip(model, only_empty=True)
    held = shared_holder(model)
    if held is not None and name in held[1]:
        if name in routers(model):
            routers(model)[name].stop()
        del held[1][name]
    if isinstance(model, Tuner) and name in model.prompt_encoder:
        del model.prompt_encoder[name]


def fuse(model: nn.Module, names: tuple[str, ...], requantise: bool = False) -> None:
    """Merge for good and take the hosts away."""
    groups = alike(model)
    without = [h for _, h in hosts(model) if h.base.has_bias and h.base.bias is None]
    merge(model, names, requantise)
    gained = [h.base.module for h in without if h.merged and h.base.bias is not None]
    strip(model)
    retie(model, groups)
    settle_gained(model.model if isinstance(model, Tuner) else model, gained)


def alike(model: nn.Module) -> list[list[nn.Module]]:
    """The modules that share one weight, those that share the same in one list."""
    found: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        weight = None if isinstance(module, Host) else module._parameters.get("weight")
        if weight is not None:
            found.setdefault(id(weight), []).append(module)
    return [group for group in found.values() if len(group) > 1]


def retie(model: nn.Module, groups: list[list[nn.Module]]) -> None:
    """After merging: weights of modules that shared one and are still equal become one again; the config of a model
    with two embeddings does not say otherwise."""
    for first, *others in groups:
        weight: Any = first.weight
        for module in others:
            own: Any = module.weight
            if own is not weight and not own.is_meta and own.shape == weight.shape and torch.equal(own, weight):
                module.weight = weight
    config, pair = getattr(model, "config", None), _embeddings(model)
    if pair is None or not getattr(config, "tie_word_embeddings", False) or pair[0].is_meta:
        return
    if pair[0] is not pair[1] and pair[0].data_ptr() != pair[1].data_ptr():
        config.tie_word_embeddings = False  # type: ignore[union-attr]
        warnings.warn("input and output embeddings are separate now (tie_word_embeddings=False)", AfinaWarning, 4)


def _embeddings(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
    get_in, get_out = getattr(model, "get_input_embeddings", None), getattr(model, "get_output_embeddings", None)
    if not callable(get_in) or not callable(get_out):
        return None
    try:
        first, last = get_in(), get_out()
    except NotImplementedError:
        return None
    weights = [getattr(m, "weight", None) for m in (first, last)]
    return (weights[0], weights[1]) if all(isinstance(w, torch.Tensor) for w in weights) else None  # type: ignore[return-value]
