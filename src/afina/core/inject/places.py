"""The config fields that say where a new adapter goes which has to sit exactly where others sit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ...errors import TargetError
from ..config import LayerConfig
from ..hosts.host import Host
from .targets import select

_LIMITS = ("exclude_modules", "layers_to_transform", "layers_pattern")


def plain_path(path: str) -> str:
    """A host's path without the hosts that it passes through: the module's name in the plain model."""
    return ".".join(part for part in path.split(".") if part != "base_layer")


def ranks_at(ranks: Mapping[str, int]) -> dict[str, int]:
    """Host path -> rank as module name -> rank, the largest where several parameters of one module are adapted."""
    out: dict[str, int] = {}
    for path, rank in ranks.items():
        name = plain_path(path)
        out[name] = max(rank, out.get(name, 0))
    return out


def places(model: nn.Module, layers: Mapping[str, Host], likes: Sequence[LayerConfig]) -> dict[str, Any]:
    """`target_modules` and its companions for exactly these hosts: as `likes` have them, if their union means the same;
    else the modules' names.

    Raises:
        TargetError: no pattern means exactly them.
    """
    names = [plain_path(p) for p, h in layers.items() if h.parameter is None]
    own = [f"{plain_path(p)}.{h.parameter.rpartition('.')[2]}" for p, h in layers.items() if h.parameter is not None]
    parameters = {"target_parameters": own} if own else {}
    if not names:
        return {"target_modules": [], **parameters}
    # Attention's output projection goes with its input projection, named or not.
    optional = {n for n in names if n.endswith(".out_proj") and n.removesuffix(".out_proj") in names}
    exact = "|".join(re.escape(n) for n in names)
    for fields in [*_union(likes), {"target_modules": names}, {"target_modules": exact}]:
        chosen = set(select(model, LayerConfig(**fields)))
        if chosen | optional == set(names) and not chosen & {*own}:
            return {**fields, **parameters}
    raise TargetError("no list of names means exactly the adapted modules", where=", ".join(names[:3]))


def _union(likes: Sequence[LayerConfig]) -> list[dict[str, Any]]:
    """The union of the configs' targets, if they are of one kind and limited in the same way."""
    limits = [{k: getattr(c, k) for k in _LIMITS if getattr(c, k) is not None} for c in likes]
    targets = [c.target_modules for c in likes]
    if any(limit != limits[0] for limit in limits):
        return []
    lists = [t for t in targets if isinstance(t, list) and t]
    patterns = [t for t in targets if isinstance(t, str)]
    if len(lists) == len(targets):
        return [{"target_modules": list(dict.fromkeys(n for t in lists for n in t)), **limits[0]}]
    if len(patterns) == len(targets):
        joined = patterns[0] if len(set(patterns)) == 1 else "|".join(f"({t})" for t in dict.fromkeys(patterns))
        return [{"target_modules": joined, **limits[0]}]
    return []
