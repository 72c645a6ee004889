"""A base that many processes read together: each reads its own slice of every weight from the files, none a whole one.

transformers makes the model without data, then fills each parameter with what of the files belongs there, slices where
it is a DTensor. What is ours is to spread the parameters in between, in the groups that runs train in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from ...core.layers.sharded import is_sharded, units
from ...core.layers.spreading import keep_part, shard
from ...core.layers.tensor_parallel import remember
from ...devices.place import place
from ..recipe.sections import ModelSection

_SEAM = "maybe_distribute_model"
"""transformers' step between a model without data and its weights."""


def why_read_whole(section: ModelSection) -> str | None:
    """Why every process has to read a base whole before it keeps its part of it; None where none has to."""
    from transformers import PreTrainedModel

    if section.adapter is not None and section.adapter_as == "base":
        return "an adapter is merged into it"
    return None if hasattr(PreTrainedModel, _SEAM) else "this transformers cannot read parts"


def read_in_parts(
    read: Callable[..., tuple[Any, dict[str, Any]]], section: ModelSection, heads: Collection[str]
) -> tuple[Any, dict[str, Any]]:
    """A model that all processes read, and what transformers says of its loading; `spread_read` makes it whole.

    Args:
        read: transformers' `from_pretrained`, but for what spreads the model.
        heads: names of modules whose weights the files lack by right. They are drawn, by all processes alike, and stay
            whole in each; and so does what else they lack.
    """
    import torch

    if section.quantize != "none":
        return _quantise(read)
    drawn, lacking, device = torch.get_rng_state(), set[str](), place(section.device).name

    def stay_whole(model: Any) -> list[Any]:
        named = [p for n, p in model.named_parameters() if n in lacking or {*n.split(".")} & {*heads}]
        return named + _tables(model, section)

    model, found = _read(read, device, stay_whole)
    lacking |= {n for n, p in model.named_parameters() if is_sharded(p) and n in found["missing_keys"]}
    if lacking:
        torch.set_rng_state(drawn)
        model, found = _read(read, device, stay_whole)
    return model, found


def _tables(model: Any, section: ModelSection) -> list[Any]:
    """The weights of embeddings and output heads that are to grow by rows, for which they have to be whole."""
    if not section.new_tokens:
        return []
    found = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [layer.weight for layer in found if layer is not None]


def spread_read(model: Any, section: ModelSection) -> Any:
    """A model that `read_in_parts` gave, with each process's part of every weight in its place."""
    import torch

    if not any(True for _ in units(model)):
        shard(model, torch.device(place(section.device).name), _tables(model, section))
    else:
        remember([(m, n, p) for m in model.modules() for n, p in m._parameters.items() if is_sharded(p)])
    return model


def _quantise(read: Callable[..., tuple[Any, dict[str, Any]]]) -> tuple[Any, dict[str, Any]]:
    """A model of whose layers in 4 bits each process keeps a part as soon as one is quantised; all else is whole."""
    from transformers.integrations.bitsandbytes import Bnb4bitQuantize

    kind: Any = Bnb4bitQuantize
    plain = kind.convert

    def convert(self: Any, tensors: Any, full_layer_name: Any = None, model: Any = None, **how: Any) -> Any:
        out = plain(self, tensors, full_layer_name=full_layer_name, model=model, **how)
        for name, weight in out.items():
            keep_part(model.get_submodule(name.rpartition(".")[0]), weight)
        return out

    kind.convert = convert
    try:
        return read()
    finally:
        kind.convert = plain


def _read(
    read: Callable[..., tuple[Any, dict[str, Any]]], device: str, stay_whole: Callable[[Any], list[Any]]
) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers.distributed import DistributedConfig

    def spread(model: Any) -> None:
        shard(model, torch.device(device), stay_whole(model))

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

    own = kind.__dict__.get(_SEAM)  # None where the class has it from another
    setattr(kind, _SEAM, classmethod(step))
    try:
        yield
    finally:
        if own is None:
            delattr(kind, _SEAM)
        else:
            setattr(kind, _SEAM, own)
