"""Taking adapters and hosts away: with what was merged into the layers, or with the original bits; tied embeddings stay
honest."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from ...errors import AfinaWarning, NameTakenError
from ..disk.embeddings import layers as embeddings
from ..hosts.calls import unwatch
from ..hosts.host import Host, hosts
from ..hosts.host_kinds import ModulesToSaveWrapper
from ..hosts.routing import routers
from ..hosts.tuner import Tuner, merge
from ..hosts.walk import shared_holder
from ..inject.slots import slots, tied_slots
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
    tied = [s.name for s in tied_slots(model)]
    without = [h for _, h in hosts(model) if h.base.has_bias and h.base.bias is None]
    merge(model, names, requantise)
    gained = [h.base.module for h in without if h.merged and h.base.bias is not None]
    strip(model)
    retie(model, tied)
    settle_gained(model.model if isinstance(model, Tuner) else model, gained)


def retie(model: nn.Module, tied: list[str]) -> None:
    """After merging: embeddings that were one (`tied`, by name) and are still equal become one again; otherwise the
    broken tie is recorded in the model's config."""
    modules: list[Any] = [model.get_submodule(name) for name in tied]
    for module in modules[1:]:
        first, own = modules[0].weight, module.weight
        if first is not own and first.shape == own.shape and not first.is_meta and torch.equal(first, own):
            module.weight = first
    config, found = getattr(model, "config", None), [getattr(m, "weight", None) for m in modules or embeddings(model)]
    weights = [w for w in found if isinstance(w, torch.Tensor)]
    apart = any(w.data_ptr() != weights[0].data_ptr() for w in weights if not w.is_meta)
    if apart and getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False  # type: ignore[union-attr]
        warnings.warn("embeddings that the config ties are separate now (tie_word_embeddings=False)", AfinaWarning, 6)
