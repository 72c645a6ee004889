"""How a layer is cut over processes (tensor parallel): by its outputs or its inputs, and what it hands on."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from .sharded import is_sharded, is_spread

KEY_LAYERS = ("k_proj", "qkv_proj", "query_key_value")
"""How the layers are called whose output has the keys, in the models that transformers can cut."""


@dataclass(frozen=True)
class Cut:
    """How a layer is cut.

    Attributes:
        mesh: the processes that have a part each.
        outputs: whether the weight is cut by its outputs, else by its inputs.
        takes_part: whether the layer is called with a part of its input.
        gives_part: whether it gives a part of its output.
    """

    mesh: Any
    outputs: bool
    takes_part: bool
    gives_part: bool

    @property
    def follows(self) -> bool:
        """Whether what is cut of the weight is cut of the layer's input or output too, so that adapters can be."""
        return self.gives_part if self.outputs else self.takes_part

    def gathered(self, part: Tensor, size: int) -> Tensor:
        """All of a tensor, of whose last dimension each process has a part; the gradient is cut again."""
        from torch.distributed.tensor import DTensor, Shard

        shape = torch.Size((*part.shape[:-1], size))
        stride = torch.empty(shape, device="meta").stride()
        made = DTensor.from_local(part, self.mesh, [Shard(-1)], run_check=False, shape=shape, stride=stride)
        return made.full_tensor()

    def part(self, full: Tensor, dim: int = -1) -> Tensor:
        """This process's part of a tensor's dimension; the gradient is gathered."""
        from torch.distributed.tensor import DTensor, Replicate, Shard

        made = DTensor.from_local(full, self.mesh, [Replicate()], run_check=False)
        return made.redistribute(placements=[Shard(dim % full.dim())]).to_local()

    def summed(self, value: Tensor) -> Tensor:
        """The sum of what the processes have; each gets its gradient."""
        from torch.distributed.tensor import DTensor, Partial, Replicate

        made = DTensor.from_local(value, self.mesh, [Partial()], run_check=False)
        return made.redistribute(placements=[Replicate()]).to_local()

    def fanned_out(self, value: Tensor) -> Tensor:
        """The same value, of which every process computes a part of the gradient: those are summed."""
        from torch.distributed.tensor import DTensor, Partial, Replicate

        made = DTensor.from_local(value, self.mesh, [Replicate()], run_check=False)
        return made.to_local(grad_placements=[Partial()])

    def placed(self, value: Tensor, dims: tuple[int | None, int | None]) -> Any:
        """A whole tensor, equal in all processes from here on, cut as the layer is.

        Args:
            dims: its dimension that counts the layer's outputs, and the one that counts its inputs, where it has them.
        """
        from torch.distributed.tensor import Replicate, Shard, distribute_tensor

        dim = dims[0] if self.outputs else dims[1]
        return distribute_tensor(value.detach(), self.mesh, [Replicate() if dim is None else Shard(dim)])


def cut_of(module: nn.Module) -> Cut | None:
    """How a linear layer is cut; None where it is whole, gathered before it runs, or cut in a way not known here."""
    weight: Any = module._parameters.get("weight")
    if not isinstance(module, nn.Linear) or not is_sharded(weight) or is_spread(module):
        return None
    from torch.distributed.tensor import Replicate, Shard

    found = _layouts(module)
    if found is None or any(type(place) not in (Replicate, Shard) for place in found):
        return None
    if weight.placements not in ((Shard(0),), (Shard(1),)):
        return None
    takes, gives = (isinstance(place, Shard) for place in found)
    return Cut(weight.device_mesh, weight.placements[0].dim == 0, takes, gives)


def _layouts(module: nn.Module) -> tuple[Any, Any] | None:
    """Of a layer's input and output: in parts or whole; None where that is not known or they are no plain tensors."""
    forward = module.__dict__.get("forward")
    if forward is not None:  # transformers' way: the layer's own forward is wrapped
        style: Any = inspect.getclosurevars(forward).nonlocals.get("self")
        if getattr(style, "use_local_output", False) and hasattr(style, "input_layouts"):
            return style.input_layouts, style.output_layouts
        return None
    # torch's way: hooks with the style's functions
    before = [c for hook in module._forward_pre_hooks.values() if (c := _bound(hook, "input_fn")) is not None]
    after = [c for hook in module._forward_hooks.values() if (c := _bound(hook, "output_fn")) is not None]
    if len(before) != 1 or len(after) != 1 or after[0][1] is not True:
        return None
    return before[0][0][0], after[0][0][0]


def _bound(hook: Any, name: str) -> tuple[Any, ...] | None:
    if not inspect.isfunction(hook):
        return None
    partial = inspect.getclosurevars(hook).nonlocals.get(name)
    args: tuple[Any, ...] | None = getattr(partial, "args", None)
    return args


def refuse_cut(name: str, module: nn.Module, parameter: str | None = None, *, copied: bool = False) -> None:
    """Refuse a module that is cut over processes otherwise than by columns or rows, or as a table of embeddings.

    Args:
        parameter: what is adapted of it alone.
        copied: whether a whole copy is to be called in its place.

    Raises:
        ConfigError: its adapter would see a part of what the module does.
    """
    cut, weight = cut_of(module), module._parameters.get("weight")
    if isinstance(module, nn.Embedding) or (cut is not None and parameter is None):
        known = cut is None or not copied or not (cut.takes_part or cut.gives_part)
    else:
        known = not _is_wrapped(module) and (is_spread(module) or not is_sharded(weight))
    if not known:
        raise ConfigError("adapters cannot follow how this module is cut over processes", where=name,
                          got=getattr(weight, "placements", type(module).__name__),
                          expected="a linear layer cut by columns or rows, or a whole module",
                          fix="leave it out of " + ("modules_to_save" if copied else "the targets"))  # fmt: skip


def _is_wrapped(module: nn.Module) -> bool:
    forward = module.__dict__.get("forward")
    ways = inspect.isfunction(forward) and forward.__module__.startswith("transformers.distributed.")
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return ways or any(_bound(hook, name) for hook in hooks for name in ("input_fn", "output_fn"))


def uncut(module: nn.Module) -> nn.Module:
    """A copied module, whose weights are whole, without what let its layers work in parts."""
    for part in module.modules():
        if not _is_wrapped(part):
            continue
        part.__dict__.pop("forward", None)
        for hooks in (part._forward_pre_hooks, part._forward_hooks):
            for key in [k for k, hook in hooks.items() if _bound(hook, "input_fn") or _bound(hook, "output_fn")]:
                del hooks[key]
    return module


def cut_of_keys(model: nn.Module) -> Cut | None:
    """How the attention's keys are shared out, if each process has those of some heads only."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    found = (cut_of(m) for path, m in model.named_modules() if path.removesuffix(".base_layer").endswith(KEY_LAYERS))
    return next((cut for cut in found if cut is not None and cut.gives_part), None)
