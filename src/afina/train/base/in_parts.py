"""A base that many processes read together: each reads its own slice of every weight from the files, none a whole one.

transformers makes the model without data, then fills each parameter with what of the files belongs there, slices where
it is a DTensor. What is ours is to spread the parameters in between, in the groups that runs train in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from ...core.layers.sharded import is_sharded
from ...core.layers.spreading import shard
from ...core.layers.tensor_parallel import remember
from ..recipe.sections import ModelSection

_SEAM = "maybe_distribute_model"
"""transformers' step between a model without data and its weights."""


def why_read_whole(section: ModelSection) -> str | None:
    """Why every process has to read a base whole before it keeps its part of it; None where none has to."""
    from transformers import PreTrainedModel

    if section.quantize != "none":
        return "it is quantised as it is read"
    if section.adapter is not None and section.adapter_as == "base":
        return "an adapter is merged into it"
    return None if hasattr(PreTrainedModel, _SEAM) else "this transformers cannot read parts"


def read_in_parts(read: Callable[..., tuple[Any, dict[str, Any]]], device: str, heads: Collection[str]) -> Any:
    """A model that is spread over all processes, and what transformers says of its loading.

    Args:
        read: transformers' `from_pretrained`, but for what spreads the model.
        heads: names of modules whose weights the files lack by right. They are drawn, by all processes alike, and stay
            whole in each; and so does what else they lack.
    """
    import torch

    drawn, names = torch.get_rng_state(), set[str]()
    model, found = _read(read, device, lambda name: bool({*name.split(".")} & {*heads}))
    if lacking := {n for n, p in model.named_parameters() if is_sharded(p) and n in found["missing_keys"]}:
        names |= lacking
        torch.set_rng_state(drawn)
        model, found = _read(read, device, lambda name: name in names or bool({*name.split(".")} & {*heads}))
    remember([(m, n, p) for m in model.modules() for n, p in m._parameters.items() if is_sharded(p)])
    return model, found


def _read(
    read: Callable[..., tuple[Any, dict[str, Any]]], device: str, stays_whole: Callable[[str], bool]
) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers.distributed import DistributedConfig

    def spread(model: Any) -> None:
        shard(model, torch.device(device), [p for n, p in model.named_parameters() if stays_whole(n)])

    where = {} if device == "cpu" else {"device_map": {"": device}}
    with _between(spread):
        model, found = read(distributed_config=DistributedConfig(), **where)
    model.config.__dict__.pop("distributed_config", None)
    return model, found


@contextmanager
def _between(do: Callable[[Any], None]) -> Iterator[None]:
    """Do something to each model that transformers has made and not filled yet."""
    from transformers import PreTrainedModel

    kind: Any = PreTrainedModel

    def step(cls: Any, model: Any, *_: Any) -> Any:
        do(model)
        return model

    setattr(kind, _SEAM, classmethod(step))
    try:
        yield
    finally:
        delattr(kind, _SEAM)
