"""A base whose layers are cut over processes: tensor parallel (transformers' `tp_plan`, torch's `parallelize_module`).

A column-wise layer gives a part of its outputs in every process, a row-wise one takes a part of its inputs and sums the
products over the processes. An adapter sees either the layer's part, with its own tensors cut along, or the whole
layer: `CutLinear.part` and `CutLinear.full` are the two operators.

    column-wise   y_p = W_p x       A whole, B_p by outputs:   y_p + B_p f(A x)     f sums gradients over the processes
    row-wise      y = Σ W_p x_p     A_p by inputs, B whole:    y + B g(A_p x_p)     g sums values over the processes

Megatron-LM: Shoeybi et al. 2019, arXiv 1909.08053.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError, MergeError
from .sharded import DIGESTS, SAMPLED_NUMBERS, is_sharded, is_spread, whole
from .weights import LinearWeight


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


class CutLinear(LinearWeight):
    """A linear layer of which every process has a part. Run by itself it takes and gives what its model hands on."""

    def __init__(self, module: nn.Module, cut: Cut) -> None:
        super().__init__(module)
        self.cut = cut
        self.part, self.full = _Part(module, cut), _Full(module, cut)

    def check_merge(self, requantise: bool) -> None:
        raise MergeError("the layer is cut over processes", where=type(self.module).__name__,
                         fix="save the adapter, and merge it in one process")  # fmt: skip


class _Full(LinearWeight):
    """The whole layer: takes all inputs, gives all outputs; its weight is gathered where it is asked for."""

    def __init__(self, module: nn.Module, cut: Cut) -> None:
        super().__init__(module)
        self.cut = cut

    def entered(self, x: Tensor) -> Tensor:
        """All inputs, from what the layer is called with."""
        return self.cut.gathered(x, self.in_features) if self.cut.takes_part else x

    def left(self, out: Tensor) -> Tensor:
        """What the layer has to give, from all outputs."""
        return self.cut.part(out) if self.cut.gives_part else out

    def run(self, *args: Any, **kwargs: Any) -> Any:
        (x,) = (*args, *kwargs.values())
        out = self.module(self.cut.part(x) if self.cut.takes_part else x)
        return self.cut.gathered(out, self.out_features) if self.cut.gives_part else out


class _Part(LinearWeight):
    """The layer as its process has it, for adapters that are cut along."""

    crosses = True

    def __init__(self, module: nn.Module, cut: Cut) -> None:
        super().__init__(module)
        self.cut = cut

    def read(self) -> tuple[Tensor, Tensor | None]:
        return local(self.weight), None if self.bias is None else local(self.bias)

    def apply(self, x: Any, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        if self.cut.outputs:
            return F.linear(self.cut.fanned_out(x), weight, bias)
        out = self.cut.summed(F.linear(x, weight))
        return out if bias is None else out + bias

    def low_rank(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        hidden = F.linear(x, a)
        return F.linear(self.cut.fanned_out(hidden) if self.cut.outputs else self.cut.summed(hidden), b)

    def norm_of_rows(self, rows: Tensor) -> Tensor:
        if self.cut.outputs:
            return super().norm_of_rows(rows)
        return self.cut.summed(rows.square().sum(1)).sqrt()


def local(tensor: Any) -> Tensor:
    """This process's part of a tensor; its gradient is that of the part, and of a whole one taken as equal in all."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[no-any-return]


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
    inner = inspect.getclosurevars(forward).nonlocals if inspect.isfunction(forward) else {}
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return "mesh" in inner or any(_bound(hook, name) for hook in hooks for name in ("input_fn", "output_fn"))


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


def is_cut_along(adapter: nn.Module) -> bool:
    """Whether an adapter on a cut layer is cut as that is."""
    return any(map(is_sharded, adapter._parameters.values()))


def is_cut(model: nn.Module) -> bool:
    """Whether processes have parts of a model's weights that nobody gathers before they are used."""
    return next(_cut_parameters(model), None) is not None


def _cut_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if is_sharded(parameter) and not is_spread(module):
                yield module, name, parameter


def remember_wholes(model: nn.Module) -> None:
    """Take the digests of a cut base's weights as wholes; all its processes have to ask for it."""
    places = [(module, name, parameter) for module, name, parameter in _cut_parameters(model)
              if name not in module.__dict__.get(DIGESTS, {}) and not parameter.is_meta]  # fmt: skip
    if not places:
        return
    samples = [_sampled(parameter) for _, _, parameter in places]
    together = torch.cat(samples)
    torch.distributed.all_reduce(together, group=places[0][2].device_mesh.get_group())
    for (module, name, _), numbers in zip(places, together.cpu().split([len(s) for s in samples]), strict=True):
        digest = hashlib.sha256(numbers.clone().numpy().tobytes()).hexdigest()[:16]
        module.__dict__.setdefault(DIGESTS, {})[name] = digest


def _sampled(parameter: Any) -> Tensor:
    """The bytes of the numbers that a digest is made of, where they lie here; the first of equal ones has them."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset as lie

    numbers = torch.arange(0, parameter.numel(), max(1, parameter.numel() // SAMPLED_NUMBERS))[:SAMPLED_NUMBERS]
    at = torch.stack(torch.unravel_index(numbers, parameter.shape))
    shape, offset = (torch.tensor(v)[:, None] for v in lie(parameter.shape, parameter.device_mesh, parameter.placements))
    here = ((at >= offset) & (at < offset + shape)).all(0)
    if not any(place.is_shard() for place in parameter.placements):
        here &= parameter.device_mesh.get_local_rank() == 0
    part = parameter.detach().to_local()
    values = torch.zeros(len(numbers), dtype=part.dtype, device=part.device)
    values[here] = part[tuple((at - offset)[:, here])]
    return values.view(torch.uint8)


def cut_of_keys(model: nn.Module) -> Cut | None:
    """How the attention's keys are shared out, if each process has those of some heads only."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    found = (cut_of(m) for path, m in model.named_modules() if path.removesuffix(".base_layer").endswith(KEY_LAYERS))
    return next((cut for cut in found if cut is not None and cut.gives_part), None)


def cut_along(module: nn.Module, cut: Cut, dims: Mapping[str, tuple[int | None, int | None]]) -> None:
    """Cut an adapter's tensors as its layer is.

    Args:
        dims: its parameters; see `Cut.placed`.
    """
    for name, parameter in list(module._parameters.items()):
        if parameter is not None:
            made = nn.Parameter(cut.placed(parameter, dims[name]), parameter.requires_grad)
            module.register_parameter(name, made)


def alike(model: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Give what every process has whole of modules beside a cut base the values of the first one."""
    first = next(_cut_parameters(model), None)
    if first is None:
        return
    group = first[2].device_mesh.get_group()
    for tensor in (t for module in modules for t in (*module.parameters(), *module.buffers())):
        if not tensor.is_meta and not is_sharded(tensor):
            torch.distributed.broadcast(tensor.detach(), group=group, group_src=0)


def parts_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's own tensors: of cut ones this process's part."""
    return {n: local(p) for n, p in module.named_parameters()}


def wholes_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's own tensors: cut ones gathered, whose gradients are cut again."""
    return {n: whole(p) for n, p in module.named_parameters()}
