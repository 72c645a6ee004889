"""Another adapter's weights in the place of a loaded one's, in the same memory, so that compiled code stays valid."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import AfinaWarning, CheckpointError, ConfigError, MergeError
from ..config import PeftConfig, method
from ..disk.checkpoint import open_adapter
from ..disk.names import layout, own_key
from ..files.tensorfile import check_finite
from ..hosts import tuner
from ..hosts.adapter import Adapter, Site
from ..hosts.host import Host, hosts


def hotswap_adapter(
    model: nn.Module, model_name_or_path: str | os.PathLike[str], adapter_name: str, torch_device: str | None = None,
    **hub: Any,
) -> None:  # fmt: skip
    """Put an adapter from disk in the place of a loaded one, in the same memory, so that compiled code stays valid.

    Args:
        model: a `PeftModel`.
        model_name_or_path: folder or hub id.
        adapter_name: the loaded one, which keeps its name.
        torch_device: accepted for the reference's sake, without effect.
        **hub: of the hub: `revision`, `cache_dir`, `token`, `force_download`, `local_files_only`.

    Raises:
        NameTakenError: no adapter of this name is loaded.
        MergeError: the adapter is merged.
        CheckpointError, ConfigError: the two do not fit; nothing was changed.
    """
    file = open_adapter(str(model_name_or_path), **hub)
    configs: dict[str, PeftConfig] = model.peft_config  # type: ignore[assignment]
    tuner.check_known([adapter_name], configs)
    check_hotswap_configs_compatible(configs[adapter_name], file.config)
    hotswap_adapter_from_state_dict(model, file.tensors(), adapter_name, file.config)


def check_hotswap_configs_compatible(config0: PeftConfig, config1: PeftConfig) -> None:
    """Refuse a swap between configs whose difference would be more than other numbers in the same places.

    Raises:
        ConfigError: another method, or other options.
    """
    if config0.peft_type != config1.peft_type:
        raise ConfigError("adapters of two methods cannot be swapped in place", where="peft_type",
                          got=config1.peft_type, expected=config0.peft_type)  # fmt: skip
    classes = [method(c).implementation for c in (config0, config1)]
    if issubclass(classes[0], Adapter):
        classes = [c.for_config(o) for c, o in zip(classes, (config0, config1), strict=True)]
    if not issubclass(classes[0], Adapter) or classes[0] is not classes[1]:
        raise ConfigError("these two forms of the method cannot be swapped in place", where="config",
                          got=classes[1].__name__, expected=classes[0].__name__)  # fmt: skip


def hotswap_adapter_from_state_dict(
    model: nn.Module, state_dict: Mapping[str, Tensor], adapter_name: str, config: PeftConfig,
    parameter_prefix: str = "",
) -> None:  # fmt: skip
    """Overwrite a loaded adapter by tensors under their names on disk (the adapter's name may stand in them). Layers
    that the new adapter does not have fall silent; a smaller rank is padded with zeros. A larger one takes new memory
    where the model is not compiled.

    Raises:
        CheckpointError: tensors for layers that the loaded adapter does not have, or that do not fit.
        MergeError: the adapter is merged.
        NumericError: a tensor is not finite.
    """
    tuner.check_known([adapter_name], tuner.adapter_names(model))
    if any(adapter_name in host.merged for _, host in hosts(layout(model)[0])):
        raise MergeError("a merged adapter cannot be swapped: the layers would keep the old one", where=adapter_name,
                         fix="call unmerge_adapter() first")  # fmt: skip
    check_finite(state_dict, "state dict")
    tensors = {own_key(k.replace(f".{adapter_name}.", ".")): t for k, t in state_dict.items()}
    root, _, _ = layout(model)
    planned: list[tuple[Adapter, Adapter | None]] = []
    grows = not _is_compiled(model)
    used: set[str] = set()
    for path, host in hosts(root):
        old = host.adapter(adapter_name)
        if old is None:
            continue
        local = {k[len(path) + 1 :]: t for k, t in tensors.items() if k.startswith(f"{path}.")}
        used |= {f"{path}.{k}" for k in local}
        if not local and not old.rank_dims:
            raise CheckpointError("the new adapter lacks a layer that the loaded one has", where=path,
                                  fix="load it under a new adapter name")  # fmt: skip
        planned.append((old, _fresh(host, path, old, config, local, grows) if local else None))
    left = [k for k in tensors if k not in used]
    if left:
        raise CheckpointError(f"{len(left)} tensors belong to no layer of the loaded adapter", where=adapter_name,
                              got=", ".join(left[:3]), fix="load it under a new adapter name")  # fmt: skip
    with tuner.scope_of(model).users.changing():
        for old, new in planned:
            _absorb(old, new)
        getattr(model, "peft_config", {})[adapter_name] = config


def _fresh(
    host: Host, path: str, old: Adapter, config: PeftConfig, local: Mapping[str, Tensor], grows: bool
) -> Adapter:
    """The new adapter for one layer, beside the old one; its rank may be larger if that one's `grows`."""
    implementation = method(config).implementation.for_config(config)
    shared = getattr(old, "shared", None)
    new: Adapter = implementation(Site(host.base, path, old.dtype, torch.device("meta"), shared), config)
    shapes = new.disk_shapes({k: tuple(t.shape) for k, t in local.items()})
    wrong = [k for k in {*shapes, *local} if k not in shapes or k not in local or shapes[k] != tuple(local[k].shape)]
    if wrong:
        key = sorted(wrong)[0]
        raise CheckpointError("the tensors do not fit their config", where=f"{path}.{key}",
                              got=tuple(local[key].shape) if key in local else "missing",
                              expected=shapes.get(key, "nothing"))  # fmt: skip
    new.load_disk_state(local)
    if set(new.state_dict()) != set(old.state_dict()):
        raise CheckpointError("the new adapter has other parameters than the loaded one", where=path,
                              got=", ".join(new.state_dict()), expected=", ".join(old.state_dict()),
                              fix="load it under a new adapter name")  # fmt: skip
    for name, value in new.state_dict().items():
        have, dim = old.state_dict()[name].shape, old.rank_dims.get(name)
        fits = all(
            v == h or (d == dim and (grows or v < h)) for d, (v, h) in enumerate(zip(value.shape, have, strict=True))
        )
        if not fits:
            fix = f"call prepare_model_for_compiled_hotswap(model, target_rank={max(value.shape[dim], 1)}) first" if (
                dim is not None) else "load it under a new adapter name"  # fmt: skip
            raise CheckpointError("the new adapter is larger than the loaded one", where=f"{path}.{name}",
                                  got=tuple(value.shape), expected=tuple(have), fix=fix)  # fmt: skip
    return new


@torch.no_grad()
def _absorb(old: Adapter, new: Adapter | None) -> None:
    if new is None:
        for name in old.rank_dims:
            old.get_parameter(name).zero_()
        return
    own = old.state_dict()
    for name, value in new.state_dict().items():
        have = own[name]
        if any(n > m for n, m in zip(value.shape, have.shape, strict=True)):
            have = old.get_parameter(name)  # the same object, which an optimizer may hold
            have.data = value.to(have)
            continue
        have.zero_()
        have[tuple(slice(0, n) for n in value.shape)].copy_(value)
    for attribute in ("r", "scaling", "initial_scaling"):
        have, value = getattr(old, attribute, None), getattr(new, attribute, None)
        if isinstance(have, Tensor) and value is not None:
            have.fill_(value)
        elif have != value:
            setattr(old, attribute, value)


def prepare_model_for_compiled_hotswap(
    model: nn.Module, *, target_rank: int | None = None, config: Any = None, check_compiled: str = "error"
) -> None:
    """Before compiling: pad every adapter to `target_rank` and keep scalings in tensors, so that adapters of other
    ranks and scalings can be swapped in without compiling again.

    Args:
        model: a `PeftModel`, or any module with injected adapters.
        target_rank: rank to pad to; None keeps all as they are.
        config: accepted for the reference's sake, without effect.
        check_compiled: "error", "warn" or "ignore" when the model is compiled already.

    Raises:
        ConfigError: compiled already, no adapter that can be padded, or a rank above `target_rank`.
    """
    if check_compiled not in ("error", "warn", "ignore"):
        raise ConfigError("not an option", where="check_compiled", got=check_compiled, expected="error, warn or ignore")
    if _is_compiled(model) and check_compiled != "ignore":
        if check_compiled == "error":
            raise ConfigError("the model is compiled already", where="prepare_model_for_compiled_hotswap",
                              fix="call it before torch.compile")  # fmt: skip
        warnings.warn("prepared for hot-swapping after compiling: the next call compiles again", AfinaWarning, 2)
    found = [(p, h, a) for p, h in hosts(model) for a in map(h.adapter, h.names()) if a is not None and a.rank_dims]
    if not found:
        raise ConfigError("no adapter here can be prepared for hot-swapping", where=type(model).__name__)
    if target_rank is not None:
        for path, _, adapter in found:
            _check_rank(path, adapter, target_rank)
    for _, host, adapter in found:
        _pad(adapter, target_rank)
        for attribute in ("scaling", "initial_scaling"):
            value = getattr(adapter, attribute, None)
            if isinstance(value, (int, float)):
                setattr(adapter, attribute, torch.tensor(float(value), device=host.base.device))


def _is_compiled(model: nn.Module) -> bool:
    parts = (model, layout(model)[0])
    return any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None for m in parts)


def _check_rank(path: str, adapter: Adapter, target: int) -> None:
    for name, dim in adapter.rank_dims.items():
        have = adapter.get_parameter(name).shape[dim]
        if have > target:
            raise ConfigError("an adapter has a higher rank", where=f"target_rank at {path}", got=target,
                              expected=f"at least {have}")  # fmt: skip


def _pad(adapter: Adapter, target: int | None) -> None:
    for name, dim in adapter.rank_dims.items():
        old = adapter.get_parameter(name)
        if target is None or old.shape[dim] == target:
            continue
        shape = [target if d == dim else n for d, n in enumerate(old.shape)]
        new = old.detach().new_zeros(shape)
        new[tuple(slice(0, n) for n in old.shape)].copy_(old.detach())
        adapter.register_parameter(name, nn.Parameter(new, old.requires_grad))
