"""A base whose weights DeepSpeed's ZeRO-3 partitions: what it leaves in a weight's place, and how that is read.

A weight that is not in use is a placeholder of no numbers, which knows its shape. DeepSpeed gathers the weights of a
module right before it runs. Adapters stay whole in every process between the steps too, so that saving, methods' own
state and shapes are what they are in one process; the engine still partitions their gradients and optimizer's state.

ZeRO: Rajbhandari et al. 2020, arXiv 1910.02054; ZeRO-Offload: Ren et al. 2021, arXiv 2101.06840.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def is_partitioned(tensor: Any) -> bool:
    """Whether ZeRO-3 keeps the tensor, be it gathered for the moment or not."""
    return hasattr(tensor, "ds_tensor")


def is_kept_whole(tensor: Any) -> bool:
    """Whether ZeRO-3 leaves the tensor whole between its uses."""
    return bool(getattr(tensor, "ds_persist", False))


def is_placeholder(tensor: Any) -> bool:
    """Whether the tensor's numbers are not here."""
    return is_partitioned(tensor) and bool(tensor.ds_status.name == "NOT_AVAILABLE")


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's shape, also where its numbers are not here."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def read(tensor: Tensor) -> Tensor:
    """A copy of a placeholder's numbers; all processes have to ask for it."""
    from deepspeed import zero

    with zero.GatheredParameters([tensor]):
        return tensor.detach().clone()


@contextmanager
def gathered_in(module: nn.Module) -> Iterator[None]:
    """A module whose weights are here, for who runs it where no engine gathers them; all processes have to."""
    gone = [p for p in module.parameters() if is_placeholder(p)]
    if not gone:
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters(gone):
        yield


def frees(module: nn.Module) -> bool:
    """Whether parameters of the module itself are gathered before it runs, and freed afterwards."""
    return any(is_partitioned(p) and not is_kept_whole(p) for p in module._parameters.values())


def engine_of(parameters: Iterable[nn.Parameter]) -> Any:
    """What trains the parameters, if DeepSpeed does."""
    return next((p._z3_optimizer for p in parameters if hasattr(p, "_z3_optimizer")), None)


def keep_whole(parameters: Iterable[nn.Parameter]) -> None:
    """Gather parameters for good: the engine gathers them again after every step; all processes have to ask for it."""
    ours = [p for p in parameters if is_partitioned(p)]
    engine = engine_of(ours)
    if engine is not None:
        known = {id(p) for p in engine.persistent_parameters}
        engine.persistent_parameters.extend(p for p in ours if id(p) not in known)
    for parameter in ours:
        parameter.ds_persist = True  # type: ignore[attr-defined]
        parameter.is_external_param = True  # type: ignore[attr-defined]  # the first pass frees all others
    gone: list[Any] = [p for p in ours if is_placeholder(p)]
    if gone:
        gone[0].all_gather(gone)


def gather_with(module: nn.Module, parameters: Iterable[nn.Parameter | None]) -> None:
    """Let parameters of other modules be gathered with those of a module, which reads them where it runs."""
    for parameter in parameters:
        if is_partitioned(parameter):
            from deepspeed import zero

            zero.register_external_parameter(module, parameter)
