"""Batches whose rows cannot all share one pass: one pass for all that can, one for each other adapter.

Routing over the whole model, attention modules whose weights are read past their layers, and methods that look beyond
their own row (`Adapter.shares_batch`) get passes of their own; their outputs are put back in order. So do virtual
tokens in `generate` and outside causal language models; a forward pass of those takes all rows at once (`mixed.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ConfigError
from ..caches import given_cache
from ..config import TaskType, method
from ..hosts.batch_rows import BASE, Rows
from ..hosts.host import hosts
from ..hosts.host_kinds import ReadHost
from ..hosts.routing import routers
from ..prompts.mixed import can_mix

if TYPE_CHECKING:
    from .running import Running

_IGNORED = -100
_NOT_OF_ROWS = frozenset({"cache_position", "num_items_in_batch"})
Call = Callable[[Rows, tuple[Any, ...], dict[str, Any]], Any]


def plan(model: Running, rows: Rows, kwargs: Mapping[str, Any], generating: bool = False) -> list[tuple[str, ...]]:
    """The adapters of every pass that a call of `forward` or `generate` with these arguments needs."""
    if len(rows.groups) == 1 or not model.is_enabled:
        return [tuple(rows.groups)]
    prompts = model.base_model.placements(rows.groups)
    mixes = can_mix(model.get_base_model(), prompts, kwargs)
    alone = {*(() if mixes and not generating else prompts), *routers(model.base_model)}
    for _, host in hosts(model):
        read = isinstance(host, ReadHost) or host.base.kind == "attention"
        for name in rows.groups:
            adapter = host.adapter(name)
            if (read and (adapter is not None or name in host.biases)) or not getattr(adapter, "shares_batch", True):
                alone.add(name)
    together = tuple(n for n in rows.groups if n not in alone)
    embedded: tuple[str, ...] = ()
    if generating and mixes and _counts_new_tokens(model, kwargs):
        # Apart from the rows without: there `generate` knows the words, for penalties on what was said.
        embedded = tuple(n for n, p in prompts.items() if p.encoder.goes_into == "embeddings")
    own = ((n,) for n in rows.groups if n in alone and n not in embedded)
    return [names for names in (together, embedded, *own) if names]


def _counts_new_tokens(model: Running, kwargs: Mapping[str, Any]) -> bool:
    """Whether the length of what is generated does not depend on that of the input."""
    settings: Any = kwargs.get("generation_config") or getattr(model.get_base_model(), "generation_config", None)
    new = kwargs.get("max_new_tokens") or getattr(settings, "max_new_tokens", None)
    return new is not None and kwargs.get("max_length") is None


def forward(
    model: Running, call: Call, rows: Rows, wanted: list[tuple[str, ...]], args: Any, kwargs: dict[str, Any]
) -> Any:
    """The model's outputs for all rows; shorter ones are padded with zeros on the left, caches are left out.

    Raises:
        ConfigError: an argument cannot be divided into rows, or the losses of several passes cannot be weighed.
    """
    outs, numbers, shares = [], [], []
    for part, index, own_args, own_kwargs in _divided(model, rows, wanted, args, kwargs):
        labels = own_kwargs.get("labels")
        outs.append(call(part, own_args, own_kwargs))
        numbers.append(index)
        shares.append(_share(model, part, labels, kwargs.get("num_items_in_batch") is not None))
    total = 1.0 if kwargs.get("num_items_in_batch") is not None else max(sum(shares), 1)
    return _Joined(numbers, [s / total for s in shares]).join(outs)


def generate(
    model: Running, call: Call, rows: Rows, wanted: list[tuple[str, ...]], args: Any, kwargs: dict[str, Any]
) -> Any:
    """The sequences of all rows; shorter ones are padded on the right.

    Raises:
        ConfigError: more than the sequences was asked for, or there is no token to pad with.
    """
    settings: Any = kwargs.get("generation_config") or getattr(model.get_base_model(), "generation_config", None)
    if kwargs.get("return_dict_in_generate", getattr(settings, "return_dict_in_generate", False)):
        raise ConfigError("only the sequences of rows that need several passes can be given", where="generate",
                          got="return_dict_in_generate=True", fix="generate one batch per adapter")  # fmt: skip
    outs, numbers = [], []
    for part, index, own_args, own_kwargs in _divided(model, rows, wanted, args, kwargs):
        outs.append(call(part, own_args, own_kwargs))
        numbers.append(index)
    length = max(o.shape[1] for o in outs)
    if any(o.shape[1] < length for o in outs):
        fill = _padding(kwargs, settings)
        outs = [F.pad(o, (0, length - o.shape[1]), value=fill) for o in outs]
    return _Joined(numbers, []).join(outs)


def _padding(kwargs: Mapping[str, Any], settings: Any) -> int:
    keys = ("pad_token_id", "eos_token_id")
    found = [v for k in keys for v in (kwargs.get(k), getattr(settings, k, None)) if v is not None]
    if not found:
        raise ConfigError("rows of several lengths, and no token to pad with", where="generate",
                          fix="pass pad_token_id")  # fmt: skip
    first = found[0]
    return int(first[0] if isinstance(first, (list, tuple)) else first)


# -- dividing ---------------------------------------------------------------------------------------------------------


def _divided(model: Running, rows: Rows, wanted: list[tuple[str, ...]], args: Any, kwargs: dict[str, Any]) -> Any:
    """For every pass: its rows, their numbers, and its arguments."""
    if given_cache(kwargs) is not None:
        raise ConfigError("a cache cannot be divided into passes", where="past_key_values",
                          fix="run one batch per adapter with set_adapter")  # fmt: skip
    known = {n: method(c).implementation for n, c in model.peft_config.items() if n in rows.groups}
    consumed = frozenset(k for i in known.values() for k in i.inputs)
    for names in wanted:
        index = [i for i, n in enumerate(rows.names) if n in names]
        own = {k for n in names if n != BASE for k in known[n].inputs}
        given = {k: v for k, v in kwargs.items() if k not in consumed - own}
        pick = _Picked(index, len(rows.names), consumed)
        part = Rows(tuple(rows.names[i] for i in index))
        yield (part, index, tuple(pick("argument", a) for a in args), {k: pick(k, v) for k, v in given.items()})


class _Picked:
    """The rows of a pass, of any argument."""

    def __init__(self, index: list[int], count: int, lists: frozenset[str]) -> None:
        self.index, self.count, self.lists = index, count, lists

    def __call__(self, key: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            if not value.dim() or value.shape[0] == 1 or key in _NOT_OF_ROWS:
                return value
            if value.shape[0] != self.count:
                raise ConfigError("cannot be divided into the batch's rows", where=key, got=tuple(value.shape),
                                  expected=f"{self.count} rows", fix="run one batch per adapter")  # fmt: skip
            return value[torch.tensor(self.index, device=value.device)]
        if isinstance(value, dict):
            return type(value)(**{k: self(k, v) for k, v in value.items()})
        if isinstance(value, (list, tuple)) and value and key in self.lists:
            return [value[i] for i in self.index]
        if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
            return type(value)(self(key, v) for v in value)
        return value


# -- joining ----------------------------------------------------------------------------------------------------------


def _share(model: Running, rows: Rows, labels: Any, summed: bool) -> float:
    """How much the loss of one pass counts in that of all: by its labels, or by its rows."""
    if summed:
        return 1.0
    count = len(rows.names)
    if not isinstance(labels, Tensor) or labels.dim() < 2 or labels.is_floating_point():
        return count
    kinds = {model.task_type, *(model.peft_config[n].task_type for n in rows.groups if n != BASE)} - {None}
    if TaskType.CAUSAL_LM in kinds:
        return float(sum(_labels_seen(model, n, labels[torch.tensor(i)]) for n, i in rows.groups.items()))
    if kinds & {TaskType.TOKEN_CLS, TaskType.SEQ_2_SEQ_LM}:
        return float((labels != _IGNORED).sum())
    raise ConfigError("the losses of several passes cannot be weighed without the task", where="labels",
                      fix="give task_type in the configs, or compute the loss from the logits")  # fmt: skip


def _labels_seen(model: Running, name: str, labels: Tensor) -> int:
    """How many labels of (rows, tokens) a causal model's loss is the mean over."""
    found = model.base_model.placements([name]).get(name)
    if found is None or found.encoder.goes_into != "embeddings":
        return int((labels[:, 1:] != _IGNORED).sum())
    own = found.encoder.labels()
    # The last virtual token predicts the first word.
    return int((labels != _IGNORED).sum() + (0 if own is None else len(labels) * (own[1:] != _IGNORED).sum()))


class _Joined:
    """Puts the outputs of all passes back into the batch's order."""

    def __init__(self, numbers: list[list[int]], shares: list[float]) -> None:
        self.counts, self.shares = [len(n) for n in numbers], shares
        self.order = torch.tensor([i for n in numbers for i in n])

    def join(self, parts: list[Any]) -> Any:
        first = parts[0]
        if isinstance(first, Tensor):
            return self._scalar(parts) if not first.dim() else self._tensors(parts)
        if isinstance(first, dict):
            keys = [k for k in first if all(p.get(k) is not None for p in parts)]
            return type(first)(**{k: self.join([p[k] for p in parts]) for k in keys})
        if isinstance(first, (tuple, list)):
            return type(first)(self.join(list(p)) for p in zip(*parts, strict=True))
        return None  # a cache

    def _scalar(self, parts: list[Tensor]) -> Tensor:
        out: Tensor = torch.stack([p * s for p, s in zip(parts, self.shares, strict=True)]).sum()
        return out

    def _tensors(self, parts: list[Tensor]) -> Tensor:
        """Rows in order; every other dimension filled up with zeros in front."""
        sizes = [max(p.shape[d] for p in parts) for d in range(1, parts[0].dim())]
        padded = []
        for part in parts:
            before = [size - part.shape[d] for d, size in enumerate(sizes, 1)]
            padded.append(F.pad(part, [n for b in reversed(before) for n in (b, 0)]) if any(before) else part)
        times = [p.shape[0] // n for p, n in zip(parts, self.counts, strict=True)]
        if len(set(times)) > 1 or any(p.shape[0] != n * times[0] for p, n in zip(parts, self.counts, strict=True)):
            raise ConfigError("an output does not divide into the batch's rows", where="adapter_names",
                              got=[tuple(p.shape) for p in parts], fix="run one batch per adapter")  # fmt: skip
        rows = (self.order.unsqueeze(1) * times[0] + torch.arange(times[0])).flatten()
        return torch.cat(padded).index_select(0, rows.argsort().to(parts[0].device))
