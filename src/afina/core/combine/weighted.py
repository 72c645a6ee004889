"""A new adapter from several: weighted combinations of the adapters that are on a model."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...errors import AfinaWarning, ConfigError, MergeError, NameTakenError, NotMergeable
from ..config import LayerConfig, PeftConfig
from ..hosts.adapter import Adapter
from ..hosts.host import Host, hosts
from ..hosts.host_kinds import ModulesToSaveWrapper
from ..hosts.routing import routers
from ..hosts.tuner import check_known
from ..inject.places import places, ranks_at
from ..prompts.encoder import PromptLearningConfig
from ..validate import check_name
from . import task_vectors
from .low_rank_form import (
    Factors,
    Kept,
    LowRankForm,
    Retained,
    blocks,
    plain_form,
    product_of,
    recompressed,
    thin_matrices_of,
    truncated,
    update_of,
)
from .offer import Combination, Vectors
from .put_on import put

_LOG = logging.getLogger(__name__)
FAR_OFF = 0.5
"""Relative error from which a combination is told to be another thing than the weighted sum."""
_LINEAR = Combination("linear", None, "total", None, None, None)


@dataclass(frozen=True)
class _Layer:
    """One layer and the (adapter's name, weight) pairs that are combined on it."""

    path: str
    host: Host
    parts: list[tuple[str, float]]

    @property
    def weights(self) -> list[float]:
        return [w for _, w in self.parts]


@torch.no_grad()
def add_weighted_adapter(
    holder: nn.Module, model: nn.Module, configs: dict[str, PeftConfig], adapters: Sequence[str],
    weights: Sequence[float], adapter_name: str, combination: Combination,
) -> Retained:  # fmt: skip
    """Combine adapters into a new one that is neither active nor trainable; see `BaseTuner.add_weighted_adapter`."""
    layers, copies, likes = _checked(holder, model, configs, adapters, weights, adapter_name)
    classes = [type(layer.host.adapter(n)) for layer in layers for n, _ in layer.parts]
    if all(issubclass(c, Vectors) for c in classes) and combination.kind in ("linear", "svd"):
        fills, config = _vectors(layers), cast("type[Vectors]", classes[0]).combined_config(likes)
        put(holder, model, adapter_name, _with_copies(config, likes), {**fills, **copies})
        configs[adapter_name] = config
        return Retained({})
    one = len(adapters) == 1 and combination.rank is None
    if combination.by_svd and not (one and all(_form(layer) is not None for layer in layers)):
        taken, retained = _by_svd(layers, combination)
    elif combination.kind == "cat" and not one:
        taken, retained = _side_by_side(layers)
    else:
        taken, retained = _factor_by_factor(layers, combination if not one else _LINEAR)
    ranks = ranks_at({layer.path: _rank_of(taken[layer.path], layer.host) for layer in layers})
    config = plain_form().config_of(likes[0], ranks, places(model, {layer.path: layer.host for layer in layers}, likes))
    put(
        holder, model, adapter_name, _with_copies(config, likes), {**{p: filler(t) for p, t in taken.items()}, **copies}
    )
    configs[adapter_name] = config
    _LOG.info("%s = %s of %s: %s", adapter_name, combination.kind, ", ".join(adapters), retained)
    if combination.kind in ("linear", "cat", "svd") and retained.total.error >= FAR_OFF:
        warnings.warn(
            f"{adapter_name!r} is no weighted sum of {', '.join(adapters)}: relative error {retained.total.error:.2f}; "
            'combination_type="cat" gives the sum itself, "svd" the best of a rank', AfinaWarning, stacklevel=4,
        )  # fmt: skip
    return retained


def _checked(
    holder: nn.Module, model: nn.Module, configs: Mapping[str, PeftConfig], adapters: Sequence[str],
    weights: Sequence[float], adapter_name: str,
) -> tuple[list[_Layer], dict[str, Callable[[Adapter], None]], list[LayerConfig]]:  # fmt: skip
    """The layers, what fills the copies of modules that one of the adapters trains, and the configs."""
    check_name(adapter_name)
    if adapter_name in configs:
        raise NameTakenError("an adapter of this name is loaded", where="adapter_name", got=adapter_name,
                             fix="delete_adapter() first, or choose another name")  # fmt: skip
    check_known(adapters, configs)
    if not adapters or len(adapters) != len(weights) or not all(math.isfinite(w) for w in weights):
        raise ConfigError("one finite weight for each adapter is needed", where="weights", got=list(weights),
                          expected=f"{len(adapters)} numbers")  # fmt: skip
    likes = [layer_like(configs[n], n) for n in adapters]
    whole = next((n for n in adapters if n in routers(holder)), None)
    if whole is not None:
        raise NotMergeable("a method that decides over the whole model cannot be combined", where=whole)
    layers: list[_Layer] = []
    copies: dict[str, Callable[[Adapter], None]] = {}
    for path, host in hosts(model):
        parts = [(n, float(w)) for n, w in zip(adapters, weights, strict=True) if n in host.names()]
        if not parts:
            continue
        own = host.adapter(parts[0][0])
        if isinstance(host, ModulesToSaveWrapper) and own is not None and len(parts) == 1:
            copies[path] = partial(Adapter.assign, own=dict(own.state_dict()))
            continue
        if isinstance(host, ModulesToSaveWrapper) or any(n in host.biases for n, _ in parts):
            raise ConfigError("trained copies of one module and biases cannot be combined", where=path,
                              got=", ".join(n for n, _ in parts))  # fmt: skip
        if host.merged:
            raise MergeError("adapters are merged into this layer", where=path, got=", ".join(host.merged),
                             fix="call unmerge_adapter() first")  # fmt: skip
        layers.append(_Layer(path, host, parts))
    return layers, copies, likes


def _with_copies(config: LayerConfig, likes: list[LayerConfig]) -> LayerConfig:
    """The config with the trained copies that any of the combined adapters brings."""
    named = [name for like in likes for name in getattr(like, "modules_to_save", None) or []]
    if named:
        config.modules_to_save = list(dict.fromkeys(named))
    return config


def layer_like(config: PeftConfig, name: str) -> LayerConfig:
    """The config as one of weight changes.

    Raises:
        NotMergeable: it is for virtual tokens.
    """
    if isinstance(config, PromptLearningConfig) or not isinstance(config, LayerConfig):
        raise NotMergeable("virtual tokens are no change of the weights", where=name)
    return config


# -- the updates ------------------------------------------------------------------------------------------------------


def _form(layer: _Layer) -> list[tuple[Tensor, Tensor, float]] | None:
    """(A, B, s) of every adapter on the layer, or None if one has no such form."""
    found = [layer.host.adapter(n) for n, _ in layer.parts]
    thin = [a.thin() if isinstance(a, LowRankForm) else None for a in found]
    return None if any(t is None for t in thin) else [t for t in thin if t is not None]


def _by_svd(layers: list[_Layer], combination: Combination) -> tuple[dict[str, Any], Retained]:
    """The combined ΔW of each layer, cut to a rank."""
    rank = combination.rank or _largest_rank(layers)
    taken, kept = {}, {}
    for layer in layers:
        base = layer.host.base
        known = [thin_matrices_of(layer.host, n) for n, _ in layer.parts]
        per_block = max(1, rank // base.groups)
        if combination.plain == "linear" and None not in known and combination.clamp is None:
            factors, kept[layer.path] = recompressed(_stacked(known, layer.weights), per_block)
        else:
            # In the stored layout, so that masks are drawn in the reference's order.
            updates = [base.stored(update_of(layer.host, n, layer.path)) for n, _ in layer.parts]
            delta_BOI = blocks(base.canonical(combination.of(updates, layer.weights)), base)
            factors, kept[layer.path] = truncated(delta_BOI, per_block, combination.driver)
        taken[layer.path] = factors if combination.clamp is None else _clamped(factors, combination.clamp)
    return taken, Retained(kept)


def _largest_rank(layers: list[_Layer]) -> int:
    forms = [_form(layer) for layer in layers]
    if any(f is None for f in forms):
        raise ConfigError("not all of these adapters have a rank", where="svd_rank", got=None,
                          expected="the rank of the combination")  # fmt: skip
    return max(_rows(A, layer.host) for layer, f in zip(layers, forms, strict=True) for A, _, _ in f or [])


def _stacked(known: Sequence[Factors | None], weights: Sequence[float]) -> Factors:
    pairs = [f for f in known if f is not None]
    A_BRI = torch.cat([w * A for w, (A, _) in zip(weights, pairs, strict=True)], dim=1)
    return A_BRI, torch.cat([B for _, B in pairs], dim=2)


def _clamped(factors: Factors, quantile: float) -> Factors:
    A_BRI, B_BOR = factors
    high = torch.quantile(torch.cat([B_BOR.flatten(), A_BRI.flatten()]), quantile)
    return A_BRI.clamp(-high, high), B_BOR.clamp(-high, high)


def _side_by_side(layers: list[_Layer]) -> tuple[dict[str, Any], Retained]:
    """The factors of all adapters, one behind the other: exactly the weighted sum."""
    taken: dict[str, Any] = {}
    for layer in layers:
        known = [thin_matrices_of(layer.host, n) for n, _ in layer.parts]
        if any(k is None for k in known):
            raise _no_factors(layer)
        taken[layer.path] = _stacked(known, layer.weights)
    norms = {p: product_of(f) for p, f in taken.items()}
    return taken, Retained({p: Kept(taken[p][0].shape[1], n, 0.0) for p, n in norms.items()})


def _factor_by_factor(layers: list[_Layer], combination: Combination) -> tuple[dict[str, Any], Retained]:
    """A and B each combined by themselves, with √|w s| and the sign on A: cheap, and not the weighted sum of ΔW."""
    taken, kept = {}, {}
    for layer in layers:
        form = _form(layer)
        if form is None:
            raise _no_factors(layer)
        if len({A.shape for A, _, _ in form}) > 1:
            ranks = ", ".join(f"{n}: {f[0].shape[0]}" for (n, _), f in zip(layer.parts, form, strict=True))
            raise ConfigError("this combination needs adapters of one rank", where=layer.path, got=ranks,
                              fix='combination_type="cat" or "svd"')  # fmt: skip
        scaled = [w * s for w, (_, _, s) in zip(layer.weights, form, strict=True)]
        A = combination.of([f[0] for f in form], [math.copysign(math.sqrt(abs(w)), w) for w in scaled])
        B = combination.of([f[1] for f in form], [math.sqrt(abs(w)) for w in scaled])
        taken[layer.path] = (A, B, 1.0)
        known = [thin_matrices_of(layer.host, n) for n, _ in layer.parts]
        if None not in known:
            kept[layer.path] = _against_sum(layer, (A, B), _stacked(known, layer.weights))
    return taken, Retained(kept)


def _against_sum(layer: _Layer, made: tuple[Tensor, Tensor], wanted: Factors) -> Kept:
    """What the combined factors make, beside the weighted sum of the updates."""
    adapter = layer.host.adapter(layer.parts[0][0])
    assert isinstance(adapter, LowRankForm)
    A_BRI, B_BOR = adapter.as_matrices(*made)
    both = torch.cat([wanted[0], -A_BRI], dim=1), torch.cat([wanted[1], B_BOR], dim=2)
    return Kept(A_BRI.shape[1], product_of(wanted), product_of(both))


def _no_factors(layer: _Layer) -> NotMergeable:
    names = ", ".join(f"{n} ({type(layer.host.adapter(n)).__name__})" for n, _ in layer.parts)
    return NotMergeable("these adapters are not all a plain product of two factors", where=layer.path, got=names,
                        fix='combination_type="svd", which combines the weight updates themselves')  # fmt: skip


def _vectors(layers: list[_Layer]) -> dict[str, Callable[[Adapter], None]]:
    fills: dict[str, Callable[[Adapter], None]] = {}
    for layer in layers:
        states = [dict(a.state_dict()) for a in (layer.host.adapter(n) for n, _ in layer.parts) if a is not None]
        if any({k: t.shape for k, t in s.items()} != {k: t.shape for k, t in states[0].items()} for s in states):
            raise ConfigError("these adapters have other shapes here", where=layer.path,
                              got=", ".join(n for n, _ in layer.parts))  # fmt: skip
        total = {k: task_vectors.combine([s[k] for s in states], layer.weights) for k in states[0]}
        fills[layer.path] = partial(Adapter.assign, own=total)
    return fills


# -- the new adapter --------------------------------------------------------------------------------------------------


def _rank_of(taken: Any, host: Host) -> int:
    return _rows(taken[0], host) if len(taken) == 3 else int(taken[0].shape[1]) * host.base.groups


def _rows(A: Tensor, host: Host) -> int:
    """The rank that a stored A has for each expert."""
    return int(A.shape[0]) // (host.base.shape[0] if host.base.kind == "experts" else 1)


def filler(taken: Any) -> Callable[[Adapter], None]:
    """Puts factors into a fresh adapter: matrices, or (A, B, s) as they are stored."""

    def fill(adapter: Adapter) -> None:
        assert isinstance(adapter, LowRankForm)
        if len(taken) == 3:
            adapter.take_thin(taken[0], taken[1])
        else:
            adapter.take(taken)

    return fill
