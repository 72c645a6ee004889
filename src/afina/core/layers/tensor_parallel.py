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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import MergeError
from .cut import Cut
from .sharded import DIGESTS, SAMPLED_NUMBERS, is_sharded, is_spread, whole
from .weights import LinearWeight


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


def remember_wholes(model: nn.Module) -> Any:
    """Take the digests of a cut base's weights as wholes; all its processes have to ask for it.

    Returns:
        The group of those processes; None where the base is not cut.
    """
    every = list(_cut_parameters(model))
    return remember(every) if every else None


def remember(every: Sequence[tuple[nn.Module, str, Any]]) -> Any:
    """Take the digests of sharded parameters as wholes, where nobody has; all their processes have to ask for it.

    Args:
        every: modules, and names and parameters of theirs.

    Returns:
        The group of those processes.
    """
    group = every[0][2].device_mesh.get_group()
    places = [(module, name, parameter) for module, name, parameter in every
              if name not in module.__dict__.get(DIGESTS, {}) and not parameter.is_meta]  # fmt: skip
    samples = [_sampled(parameter) for _, _, parameter in places]
    if not samples:
        return group
    together = torch.cat(samples)
    torch.distributed.all_reduce(together, group=group)
    numbers = torch.split(together.cpu(), [len(sample) for sample in samples])
    for (module, name, _), own in zip(places, numbers, strict=True):
        digest = hashlib.sha256(own.clone().numpy().tobytes()).hexdigest()[:16]
        module.__dict__.setdefault(DIGESTS, {})[name] = digest
    return group


def _sampled(parameter: Any) -> Tensor:
    """The bytes of the numbers that a digest is made of, where they lie here; the first of equal ones has them."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset as lie

    numbers = torch.arange(0, parameter.numel(), max(1, parameter.numel() // SAMPLED_NUMBERS))[:SAMPLED_NUMBERS]
    first = parameter.device_mesh.get_local_rank() == 0
    if any(type(place) not in (Shard, Replicate) for place in parameter.placements):  # parts of several matrices in one
        found = whole(parameter.detach()).reshape(-1)[numbers.to(parameter.device)]
        return (found if first else torch.zeros_like(found)).view(torch.uint8)
    at = torch.stack(torch.unravel_index(numbers, parameter.shape))
    shape, offset = (
        torch.tensor(v)[:, None] for v in lie(parameter.shape, parameter.device_mesh, parameter.placements)
    )
    here = ((at >= offset) & (at < offset + shape)).all(0)
    if not any(place.is_shard() for place in parameter.placements):
        here &= first
    part = parameter.detach().to_local()
    values = torch.zeros(len(numbers), dtype=part.dtype, device=part.device)
    values[here] = part[tuple((at - offset)[:, here])]
    return values.view(torch.uint8)


def cut_along(module: nn.Module, cut: Cut, dims: Mapping[str, tuple[int | None, int | None]]) -> None:
    """Cut an adapter's tensors as its layer is.

    Args:
        dims: its parameters; see `Cut.placed`.
    """
    for name, parameter in list(module._parameters.items()):
        if parameter is not None:
            made = nn.Parameter(cut.placed(parameter, dims[name]), parameter.requires_grad)
            module.register_parameter(name, made)


def alike(module: nn.Module | None, group: Any) -> None:
    """Give what every process has whole of a module beside a cut base the values of the first one.

    Args:
        group: of `remember_wholes`; nothing is done without one.
    """
    for tensor in () if group is None or module is None else (*module.parameters(), *module.buffers()):
        if not tensor.is_meta and not is_sharded(tensor):
            torch.distributed.broadcast(tensor.detach(), group=group, group_src=0)


def parts_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's own tensors: of cut ones this process's part."""
    return {n: local(p) for n, p in module.named_parameters()}


def wholes_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's own tensors: cut ones gathered, whose gradients are cut again."""
    return {n: whole(p) for n, p in module.named_parameters()}
