"""How a base is spread over processes by FSDP2, and how adapters train beside it; `sharded` has what it is then."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError, NumericError
from .sharded import DIGESTS, MARK, blocks, digest, gathers_newly, is_sharded, is_spread, reshard, runs_whole, units
from .storages import Bits4Weight, quantised_weight

_PART_OF = "part_of"
"""Attribute of a layer that has a part of its codes: the shape of all of them."""


def shard(model: nn.Module, device: torch.device, adapters: Iterable[nn.Parameter] = ()) -> None:
    """Spread a base model's frozen weights over all processes of the default group, block by block.

    Args:
        model: the base; on the processor, on `device`, or without data, to be filled afterwards.
        device: where the slices are to lie: this process's own.
        adapters: parameters inside of the model that stay whole in every process.

    Raises:
        ConfigError: a weight cannot be spread.
        NumericError: a weight was not spread.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    whole_ones = set(adapters)
    codes, parts = _bare_codes(model)
    _check(model, whole_ones)
    for module in model.modules():
        found = {n: p for n, p in module._parameters.items() if p is not None and p not in whole_ones | codes}
        module.__dict__[DIGESTS] = {n: digest(p) for n, p in found.items() if not p.is_meta}
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in (*blocks(model), model):
        fully_shard(module, mesh=mesh, ignored_params=whole_ones)
    left = [n for n, p in model.named_parameters() if p not in whole_ones and not is_sharded(p)]
    if left:
        raise NumericError("weights were not spread over the processes", where=", ".join(left[:3]), got=len(left),
                           expected="DTensor")  # fmt: skip
    for module in model.modules():
        if any(p in whole_ones for p in module._parameters.values()):
            module.__dict__.pop(MARK, None)
    for layer, part in parts.items():
        _fill(layer, part, device)
    for parameter in whole_ones:
        parameter.data = parameter.data if parameter.is_meta else parameter.data.to(device)
    if hasattr(model, "generate"):
        gathers_newly(model, "generate")


def keep_part(layer: nn.Module, weight: nn.Parameter) -> None:
    """Keep of a layer's codes in 4 bits, its weight to be, what will lie in this process when they are spread; the
    layer is of no use until then."""
    codes, (own, of) = weight.data, (torch.distributed.get_rank(), torch.distributed.get_world_size())
    found = torch.chunk(codes, of)
    weight.data = (found[own] if own < len(found) else codes[:0]).clone()
    layer.__dict__[_PART_OF] = codes.shape


def _bare_codes(model: nn.Module) -> tuple[set[nn.Parameter], dict[nn.Module, Tensor]]:
    """Store weights in 4 bits as ordinary tensors, as they are spread; layers keep what describes them.

    Returns:
        These weights; and of layers that have a part of their codes already that part, in whose place a tensor without
        data is.
    """
    every, parts = set[nn.Parameter](), dict[nn.Module, Tensor]()
    for module in model.modules():
        found = quantised_weight(module)
        if isinstance(found, Bits4Weight) and found.quantised:
            found.unpack()
            layer: Any = module
            layer.support_avx512bf16_for_cpu = False  # its kernel takes the codes in another order
            layer.quant_state, codes = found.state, layer.weight.data
            if (whole := layer.__dict__.pop(_PART_OF, None)) is not None:
                parts[module], codes = codes, torch.empty(whole, dtype=codes.dtype, device="meta")
            layer.weight = nn.Parameter(codes, requires_grad=False)
            every.add(layer.weight)
    return every, parts


def _fill(layer: Any, part: Tensor, device: torch.device) -> None:
    from torch.distributed.tensor import DTensor

    of = layer.weight
    made = DTensor.from_local(part.to(device), of.device_mesh, of.placements, run_check=False, shape=of.shape,
                              stride=of.stride())  # fmt: skip
    layer.weight = nn.Parameter(made, requires_grad=False)


def _check(model: nn.Module, whole_ones: set[nn.Parameter]) -> None:
    for name, parameter in model.named_parameters():
        if parameter in whole_ones:
            continue
        if not runs_whole(parameter) or not parameter.is_floating_point():
            raise ConfigError("this weight cannot be spread over processes", where=name,
                              got=f"{type(parameter).__name__} of {parameter.dtype}",
                              expected="an ordinary tensor of floating-point numbers")  # fmt: skip


def meeting(model: nn.Module, **how: Any) -> nn.Module:
    """The model in DistributedDataParallel, which brings the gradients of its whole parameters together.

    Args:
        how: further arguments of DistributedDataParallel.
    """
    from torch.nn.parallel import DistributedDataParallel

    reshard(model)
    spread = [n for n, p in model.named_parameters() if is_sharded(p)]
    kind: Any = DistributedDataParallel
    kind._set_params_and_buffers_to_ignore_for_model(model, spread)
    made: nn.Module = kind(model, **how)
    return made


def trained_whole(model: nn.Module) -> list[str]:
    """The parameters that train beside what is spread of a model, and of which each process has all."""
    parts = [(f"{path}.{n}", p) for path, m in model.named_modules() if not is_spread(m)
             for n, p in m._parameters.items() if p is not None]  # fmt: skip
    return [name for name, p in parts if p.requires_grad and not is_sharded(p)]


def refuse_apart(model: nn.Module) -> None:
    """Refuse to train whole parameters beside sharded ones if nobody brings their gradients together.

    Raises:
        ConfigError: every process would train an adapter of its own.
    """
    if not any(True for _ in units(model)) or torch.distributed.get_world_size() == 1 or _inside_ddp():
        return
    if apart := trained_whole(model):
        raise ConfigError("each process would train this adapter by itself: it came after the model was sharded",
                          where=f"{apart[0]} and {len(apart) - 1} more",
                          fix="train it in DistributedDataParallel, or add the adapter first")  # fmt: skip


def _inside_ddp() -> bool:
    from torch.nn.parallel import DistributedDataParallel

    kind: Any = DistributedDataParallel
    return kind._get_active_ddp_module() is not None
