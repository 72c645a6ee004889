"""Any method's weight update as LoRA, by truncated SVD, for whatever can serve only LoRA.

    ΔW ≈ U_r Σ_r V_rᵀ,   B = U_r Σ_r,   A = V_rᵀ,   s = 1

The best approximation of its rank (Eckart and Young 1936); exact where ΔW has no higher rank. Layers: all of LoRA's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import methodcaller
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.combine.low_rank_form import Kept, Retained, check_rank_or_share, nearest_factors
from ...core.combine.put_on import put
from ...core.combine.unload import delete
from ...core.combine.weighted import filler, layer_like
from ...core.config import LayerConfig
from ...core.disk.checkpoint import get_peft_model_state_dict, save_adapter
from ...core.disk.names import layout
from ...core.hosts.adapter import Adapter
from ...core.hosts.host import Host, hosts
from ...core.hosts.host_kinds import ModulesToSaveWrapper
from ...core.hosts.routing import routers
from ...core.hosts.tuner import check_known, scope_of
from ...core.inject.places import places, ranks_at
from ...errors import NotMergeable
from .lora import Lora
from .lora_config import LoraConfig

PUBLIC = ("convert_to_lora", "save_as_lora")
_LOG = logging.getLogger(__name__)


class Converted(tuple[LoraConfig, dict[str, Tensor]]):
    """(config, tensors under their names on disk), as the reference returns it.

    Attributes:
        retained: for each layer and in total, the rank, the share of ||ΔW||² kept and the relative error.
    """

    retained: Retained


def convert_to_lora(
    model: nn.Module,
    rank: float,
    adapter_name: str = "default",
    progressbar: bool = False,
    compile_kwargs: Mapping[str, Any] | None = None,
) -> Converted:
    """The LoRA that comes nearest to an adapter's weight update; the model stays as it is.

    Args:
        model: a `PeftModel`, or any module with injected adapters.
        rank: an int is the rank everywhere (or a layer's smaller side, where that is less); a float in (0, 1] is the
            share of each layer's ||ΔW||² to keep, by the smallest rank that does so.
        adapter_name: the adapter's name.
        progressbar: show one on the terminal.
        compile_kwargs: compile the decomposition with these arguments of `torch.compile`.

    Returns:
        (config, tensors under their names on disk), with `retained`: for each layer and in total the rank, the share of
        ||ΔW||² kept and the relative error.

    Raises:
        NotMergeable: the adapter is no change of weights alone (it acts on activations, tokens or biases).
        ConfigError: `rank` is no rank and no share.
        TargetError: LoRA cannot be put on one of its layers.
        NameTakenError: no such adapter.
    """
    with _beside(model, rank, adapter_name, progressbar, compile_kwargs) as (name, config, retained):
        state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        out = Converted((config, {k: t.detach().clone() for k, t in state.items()}))
    out.retained = retained
    return out


def save_as_lora(
    path: str | os.PathLike[str],
    model: nn.Module,
    rank: float,
    adapter_name: str = "default",
    progressbar: bool = False,
    compile_kwargs: Mapping[str, Any] | None = None,
) -> Retained:
    """Write what `convert_to_lora` gives into the folder `path`, as any adapter is written.

    Args:
        path: the folder.
        model: as for `convert_to_lora`, like all below.
        rank: a rank, or a share to keep.
        adapter_name: the adapter's name.
        progressbar: show one on the terminal.
        compile_kwargs: compile the decomposition.

    Returns:
        What was kept of the update.

    Raises:
        CheckpointError: the folder cannot be written; and as `convert_to_lora`.
    """
    with _beside(model, rank, adapter_name, progressbar, compile_kwargs) as (name, config, retained):
        save_adapter(model, Path(path), name, config)
    return retained


@contextmanager
def _beside(
    model: nn.Module, rank: float, adapter_name: str, progressbar: bool, compile_kwargs: Mapping[str, Any] | None
) -> Iterator[tuple[str, LoraConfig, Retained]]:
    """The conversion as a further adapter of the model, for as long as the context lasts."""
    root, container, _ = layout(model)
    layers, like = _checked(root, container, getattr(model, "peft_config", {}), rank, adapter_name)
    split = nearest_factors if compile_kwargs is None else torch.compile(nearest_factors, **compile_kwargs)
    fills: dict[str, Callable[[Adapter], None]] = {}
    kept: dict[str, Kept] = {}
    for path, host in _told(layers, progressbar):
        source = host.adapter(adapter_name)
        if isinstance(host, ModulesToSaveWrapper):
            assert source is not None
            fills[path] = methodcaller("load_disk_state", source.disk_state(source.state_dict()))
            continue
        Lora.check_kind(path, host.base)
        factors, kept[path] = split(host, adapter_name, path, rank)
        fills[path] = filler(factors)
    ranks = ranks_at({p: k.rank * layers[p].base.groups for p, k in kept.items()})
    adapted = {p: h for p, h in layers.items() if p in kept}
    config = Lora.config_of(like, ranks, places(root, adapted, [like]))
    name = next(n for n in (f"converted-{i}" for i in range(10**6)) if n not in getattr(model, "peft_config", {}))
    retained = Retained(kept)
    _LOG.info("%s as LoRA: %s", adapter_name, retained)
    with scope_of(container).users.changing():
        put(container, root, name, config, fills)
        try:
            yield name, config, retained
        finally:
            delete(container, name)


def _checked(
    root: nn.Module, container: nn.Module, configs: Mapping[str, Any], rank: float, name: str
) -> tuple[dict[str, Host], LayerConfig]:
    check_rank_or_share(rank)
    layers = {p: h for p, h in hosts(root) if name in h.names()}
    check_known([name], configs or (name if layers else ()))
    like = layer_like(configs[name], name) if name in configs else LayerConfig()
    if name in routers(container):
        raise NotMergeable("a method that decides over the whole model is no change of the weights", where=name)
    if not any(not isinstance(h, ModulesToSaveWrapper) for h in layers.values()):
        raise NotMergeable("the adapter changes no layer's weights", where=name)
    return layers, like


def _told(layers: Mapping[str, Host], progressbar: bool) -> Any:
    if not progressbar:
        return layers.items()
    from tqdm import tqdm  # type: ignore[import-untyped]

    return tqdm(layers.items(), desc="converting to LoRA")
