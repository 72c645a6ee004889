"""A base whose weights are spread over processes: FSDP2 (`torch.distributed.fsdp.fully_shard`), torch's DTensor.

Every process keeps a slice of each frozen weight. A block's weights are whole while it runs; adapters are whole in
every process, and DistributedDataParallel brings their gradients together. So a method sees ordinary tensors where the
model runs; what reads a weight elsewhere (starts, norms, fingerprints) reads it by `whole`, one layer at a time.

PyTorch FSDP: Zhao et al. 2023, arXiv 2304.11277; ZeRO: Rajbhandari et al. 2020, arXiv 1910.02054.
"""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ...errors import CheckpointError
from .partitioned import frees, gathered_in, is_placeholder, read

PATIENCE = timedelta(minutes=5)
"""How long processes wait for one another before they gather what one of them is to write."""
SAMPLED_NUMBERS = 256
MARK = "_is_fsdp_managed_module"
"""Attribute that torch gives to modules whose parameters it gathers."""
DIGESTS = "whole_digests"
"""Attribute of a sharded module: parameter -> digest of what it was as a whole."""


def is_sharded(tensor: Any) -> bool:
    """Whether this process has a part of the tensor only."""
    module = sys.modules.get("torch.distributed.tensor")  # importing it takes a while, and nobody else makes them
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all of its numbers; where it is sharded all its processes have to ask for it."""
    if is_placeholder(tensor):
        return read(tensor)
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shared_like(tensor: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, of which every process has all, in parts as `tensor` is."""
    if not is_sharded(tensor):
        return value
    from torch.distributed.tensor import distribute_tensor

    old: Any = tensor
    value = value.to(old.device_mesh.device_type if old.is_meta else old.device, old.dtype)
    return distribute_tensor(value, old.device_mesh, old.placements)


def is_first() -> bool:
    """Whether this is the process of torch's default group that writes."""
    return torch.distributed.get_rank() == 0


def all_here(what: str) -> None:
    """Wait until every process of the default group has come to the same call.

    Raises:
        CheckpointError: one did not.
    """
    store = torch.distributed.distributed_c10d._get_default_store()
    own, every = torch.distributed.get_rank(), range(torch.distributed.get_world_size())
    number = store.add(f"afina/{what}/{own}", 1)
    store.set(f"afina/{what}/{number}/{own}", "")
    try:
        store.wait([f"afina/{what}/{number}/{other}" for other in every], PATIENCE)
    except RuntimeError as error:  # torch's errors of stores
        store.delete_key(f"afina/{what}/{number}/{own}")
        store.add(f"afina/{what}/{own}", -1)
        raise CheckpointError(
            f"this process has a part of each tensor, and not all others came within {PATIENCE.seconds} s",
            where=what, got=f"process {own} of {len(every)}", fix="call it in every process; the first one writes",
        ) from error  # fmt: skip


def runs_whole(tensor: Any) -> bool:
    """Whether a parameter is an ordinary tensor while its module runs, or stands for one without data."""
    return type(tensor) in (nn.Parameter, FakeTensor) and type(tensor.data) in (Tensor, FakeTensor)


def is_spread(module: nn.Module) -> bool:
    """Whether parameters of the module itself are gathered before it runs, and freed afterwards."""
    return bool(getattr(module, MARK, False)) or frees(module)


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class of a module as it was before it was sharded."""
    kinds = type(module).__mro__
    at = next((i for i, kind in enumerate(kinds) if kind.__name__ == "FSDPModule"), -1)
    return kinds[at + 1]


def units(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of a model whose parameters are gathered together, the outermost first."""
    return (m for m in model.modules() if _is_unit(m))


def _is_unit(module: nn.Module) -> bool:
    # Of the class, because models with adapters have what their base has.
    return callable(getattr(type(module), "unshard", None))


def whole_parts(model: nn.Module) -> Iterator[nn.Module]:
    """A model, or its sharded parts one after the other, each with its weights whole while it is looked at."""
    own = list(units(model))
    for unit in own:
        ready(unit)
        yield unit
        unit.reshard()  # type: ignore[operator]
    if any(map(is_placeholder, model.parameters())):
        inside = blocks(model)
        known = {m for block in inside for m in block.modules()}
        beside = [m for m in model.modules() if m not in known and known.isdisjoint(m.modules())]
        for part in (*inside, nn.ModuleList(beside)):
            with gathered_in(part):
                yield part
    elif not own:
        yield model


def blocks(model: nn.Module) -> list[nn.Module]:
    """A model's repeated blocks: the children of its outermost lists."""
    found: list[nn.Module] = []
    left = [model]
    while left:
        for child in left.pop()._modules.values():
            if isinstance(child, nn.ModuleList):
                inner = [_bare(c) for c in child if not isinstance(c, nn.ModuleList)]
                found += [c for c in inner if any(True for _ in c.parameters())]
                left += [c for c in child if isinstance(c, nn.ModuleList)]
            elif child is not None:
                left.append(_bare(child))
    return list(dict.fromkeys(found))


def _bare(module: nn.Module) -> nn.Module:
    """A module without the hosts around it."""
    while (slot := getattr(type(module), "base_slot", None)) is not None:
        module = module.get_submodule(slot)
    return module


def reshard(model: nn.Module) -> None:
    """Free what is gathered for the moment."""
    for unit in units(model):
        unit.reshard()  # type: ignore[operator]


def forget_passes(model: nn.Module) -> None:
    """Let a model begin anew after a pass that failed, as trials do."""
    root: Any = next(units(model), None)
    if hasattr(root, "reset_iter_state") and root._get_fsdp_state()._is_root:  # none before its first pass
        root.reset_iter_state()
        reshard(model)


def freeze(model: nn.Module) -> None:
    """Let nothing of a model train. Weights that are whole for the moment become parts first: those are what counts."""
    reshard(model)
    model.requires_grad_(False)


def ready(model: nn.Module) -> None:
    """Gather what stands outside of a model's blocks, for who runs parts of it (its embedding) by themselves."""
    if _is_unit(model):
        model.unshard()  # type: ignore[operator]


def apart(module: nn.Module) -> nn.Module:
    """A copy of a module alone, with the same children, that nothing gathers."""
    kind = class_of(module)
    out = kind.__new__(kind)
    out.__dict__.update(module.__dict__)
    for slot in ("_parameters", "_buffers", "_modules"):
        out.__dict__[slot] = dict(getattr(module, slot))
    for slot in ("_forward_pre_hooks", "_forward_hooks"):
        hooks = getattr(module, slot).items()
        out.__dict__[slot] = OrderedDict((n, hook) for n, hook in hooks if not _gathers(hook))
    return out


def _gathers(hook: Any) -> bool:
    return type(getattr(hook, "__self__", None)).__name__ == "FSDPState"


def gathered(module: nn.Module) -> nn.Module:
    """A copied module with whole weights of its own in the place of sharded ones."""
    for part in module.modules():
        for mark in (MARK, DIGESTS):
            part.__dict__.pop(mark, None)
        for name, parameter in part._parameters.items():
            if is_sharded(parameter):
                assert parameter is not None
                part._parameters[name] = nn.Parameter(whole(parameter.detach()), parameter.requires_grad)
    return module


def gathers_newly(module: nn.Module, method: str) -> bool:
    """Let a method of a sharded module gather what its forward does; whether it did not until now."""
    if method in module.__dict__ or not _is_unit(module):
        return False
    from torch.distributed.fsdp import register_fsdp_forward_method

    register_fsdp_forward_method(module, method)
    return True


def digest(weight: Tensor) -> str:
    """Of up to 256 numbers that lie evenly in the tensor."""
    numbers = weight.detach().reshape(-1)
    some = numbers[:: max(1, numbers.numel() // SAMPLED_NUMBERS)][:SAMPLED_NUMBERS]
    some = some.to("cpu").clone()  # what numpy has seen cannot be freed any more
    return hashlib.sha256(some.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def digest_of(module: nn.Module, name: str) -> str | None:
    """The digest of a sharded parameter as a whole, where it was taken before."""
    found: dict[str, str] = module.__dict__.get(DIGESTS, {})
    return found.get(name)
