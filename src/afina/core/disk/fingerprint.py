"""What identifies the base that an adapter was trained on, whatever the method and wherever it sits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from ...errors import CheckpointError
from ..hosts.host import Host, hosts
from ..hosts.host_kinds import ModulesToSaveWrapper
from ..hosts.walk import outside_adapters
from ..layers.partitioned import is_partitioned, shape_of
from ..layers.sharded import class_of, digest, digest_of, is_sharded, whole

SAMPLED_TENSORS = 64
_BELOW = "_afina_adapter_below"
_CHANGED = 8
"""Parameters that a merged adapter changed and that are always among those compared."""
_SIZES = ("model_type", "hidden_size", "num_hidden_layers")


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Architecture, sizes, and hashes of numbers sampled from the base's own frozen parameters, by their names.

    Args:
        model: the user's model, with hosts in it.
    """
    config = getattr(model, "config", None)
    facts: dict[str, Any] = {"class": class_of(model).__name__}
    for key in _SIZES:
        value = getattr(config, key, None)
        if isinstance(value, (int, str)):
            facts[key] = value
    sample = _sample(model)
    if (mark := getattr(model, _BELOW, None)) is not None:
        everything = base_parameters(model)
        sample |= {n: everything[n] for n in mark.changed if n in everything}
        facts["adapter_below"] = mark.adapter
    if sample:
        facts["weights"] = {n: place.digest() for n, place in sample.items()}
        facts["weights_dtype"] = ",".join(sorted({str(place.parameter.dtype) for place in sample.values()}))
    return facts


@dataclass(frozen=True)
class _Below:
    """The adapter that was merged into a model, and some of the parameters that this has changed."""

    adapter: str
    changed: tuple[str, ...]


def digests(model: nn.Module) -> dict[str, str]:
    """What the base's parameters are known by."""
    return {name: place.digest() for name, place in base_parameters(model).items()}


def stand_on(model: nn.Module, adapter: str, before: dict[str, str]) -> None:
    """Remember that an adapter was merged into a model, so that what is trained on both is refused on the base alone.

    Args:
        before: the model's `digests` without it.
    """
    changed = [name for name, digest in digests(model).items() if before.get(name) != digest]
    object.__setattr__(model, _BELOW, _Below(adapter, tuple(changed[:_CHANGED])))


class _Place(NamedTuple):
    """A parameter of the base, and its digest where this process has a part of it only."""

    parameter: nn.Parameter
    known: str | None

    def digest(self) -> str:
        return self.known or digest(whole(self.parameter))


def _sample(model: nn.Module) -> dict[str, _Place]:
    """Some of the base's parameters by the names that they have without hosts; matrices first, for those tell most."""
    # What an adapter trains a copy of may be new every time, as a fresh head is.
    copied = tuple(f"{_plain(path)}." for path, host in hosts(model) if isinstance(host, ModulesToSaveWrapper))
    own = {n: p for n, p in base_parameters(model).items() if not n.startswith(copied)}
    found = {n: p for n, p in own.items() if not p.parameter.requires_grad}
    matrices = {n: p for n, p in found.items() if len(shape_of(p.parameter)) > 1} or found
    step = max(1, len(matrices) // SAMPLED_TENSORS)
    return dict(list(matrices.items())[::step])


def base_parameters(model: nn.Module) -> dict[str, _Place]:
    """The base's parameters that can be compared, under the names that they have without hosts; of merged layers
    the original ones.

    Embeddings are left out, because their vocabulary may be resized, where there is anything else.
    """
    tables = {id(m) for m in (_called(model, "get_input_embeddings"), _called(model, "get_output_embeddings"))}
    out: dict[str, _Place] = {}
    embeddings: dict[str, _Place] = {}
    merged: dict[int, dict[str, nn.Parameter | None]] = {}
    for path, module in outside_adapters(model):
        if isinstance(module, Host):
            merged[id(module.get_base_layer())] = module.original_parameters()
            continue
        own = {**module._parameters, **{n: p for n, p in merged.get(id(module), {}).items() if "." not in n}}
        plain = _plain(path)
        for name, parameter in own.items():
            known = digest_of(module, name) if is_sharded(parameter) or is_partitioned(parameter) else None
            # Quantised and unallocated weights have no bits that could be compared, nor have others' shards.
            ordinary = type(parameter) is nn.Parameter and parameter.is_floating_point() and not parameter.is_meta
            if parameter is not None and (ordinary or known is not None):
                place = embeddings if isinstance(module, nn.Embedding) or id(module) in tables else out
                place[f"{plain}.{name}" if plain else name] = _Place(parameter, known)
    return out or embeddings


def _plain(path: str) -> str:
    """A path as it is without hosts."""
    return path.replace(".base_layer", "").replace(".original_module", "")


def _called(model: nn.Module, getter: str) -> Any:
    get = getattr(model, getter, None)
    try:
        found = get() if callable(get) else None
    except NotImplementedError:
        return None
    return found.get_base_layer() if isinstance(found, Host) else found


def compare(saved: dict[str, Any], model: nn.Module, where: object) -> None:
    """Refuse an adapter that was trained on other weights; what was not recorded is not compared.

    Raises:
        CheckpointError: other architecture, size or weights.
    """
    here, below = fingerprint(model), saved.get("adapter_below")
    different: list[str] = [k for k in _SIZES if k in saved and k in here and saved[k] != here[k]]
    before, now = saved.get("weights"), here.get("weights", {})
    if not different and isinstance(before, dict) and saved.get("weights_dtype") == here.get("weights_dtype"):
        everything = base_parameters(model) if before.keys() - now.keys() else {}
        now = {**now, **{n: everything[n].digest() for n in before.keys() & everything.keys()}}
        different = [n for n in before if now.get(n) != before[n]]
        saved, here = before, now
    if not different:
        return
    what, fix = "the adapter was trained on another base model", "load the base named in adapter_config.json"
    if below is not None:
        what = f"the adapter was trained on a base with the adapter {below} merged in"
        fix = f"AutoPeftModel and afina's commands load both; or PeftModel.from_pretrained(base, {str(below)!r})" \
              ".merge_and_unload() gives its base"  # fmt: skip
    raise CheckpointError(
        what, where=where, got=f"this model: {_told(here, different)}", expected=_told(saved, different),
        fix=f"{fix}; in Python, allow_other_base=True loads it all the same",
    )  # fmt: skip


def _told(facts: dict[str, Any], keys: list[str]) -> str:
    return ", ".join(f"{k}={str(facts.get(k))[:16]}" for k in keys[:3])
