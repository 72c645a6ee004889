"""One pass over encoded items: the loss of each, and whether the model would write the very tokens that are trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from ..data.encode import IGNORED
from .batches import in_batches
from .judge import judging, moved


class Read(NamedTuple):
    """What a model says of an item.

    Attributes:
        loss: the mean over its trained positions.
        expected: whether the likeliest output is the trained one at each of them; greedy decoding then writes the same.
    """

    loss: float
    expected: bool


def read_items(
    model: Any, collate: Callable[[list[dict[str, Any]]], Any], items: Sequence[dict[str, Any]], *, shifted: bool,
    batch_size: int,
) -> list[Read]:  # fmt: skip
    """What a model says of every item, in their order; batches hold items of like length.

    Args:
        shifted: whether a position's output is about the next token.
    """
    encoder = bool(getattr(model.config, "is_encoder_decoder", False))
    narrow = shifted and not encoder and _takes_places(model)

    def read(part: list[dict[str, Any]]) -> list[Read]:
        batch = moved(collate(part), model)
        labels = batch["labels"] if encoder else batch.pop("labels")  # a decoder reads them, moved by one
        if not narrow:
            return list(_read(model(**batch).logits.float(), labels, shifted))
        # A vocabulary's outputs at every position take longer than a small model; only those that are judged are made.
        places = (labels[:, 1:] != IGNORED).any(0).nonzero().squeeze(1)
        if not len(places):
            places = places.new_zeros(1)
        from_end = places - labels.shape[1]  # virtual tokens stand before the input's own
        logits = model(**batch, logits_to_keep=from_end).logits.float()
        return list(_read(logits, labels[:, places + 1], False))

    order = sorted(range(len(items)), key=lambda i: len(items[i].get("input_ids", ())))
    with judging(model):
        found = list(chain.from_iterable(in_batches([items[i] for i in order], batch_size, read)))
    back = dict(zip(order, found, strict=True))
    return [back[i] for i in range(len(items))]


def _takes_places(model: Any) -> bool:
    """Whether a model makes outputs at named positions alone; one whose head is adapted is not asked to."""
    from torch import nn

    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(base, "get_output_embeddings"):
        return False
    takes = "logits_to_keep" in inspect.signature(type(base).forward).parameters
    return takes and type(base.get_output_embeddings()) is nn.Linear


def _read(logits: Any, labels: Any, shifted: bool) -> Iterator[Read]:
    """Per item; `logits` are [B, classes] or [B, T, classes], `labels` [B] or [B, T], ignored where untrained."""
    from torch.nn.functional import cross_entropy

    if labels.ndim == 1:
        logits, labels = logits[:, None], labels[:, None]
    logits = logits[:, -labels.shape[1] :]  # virtual tokens stand before the input's own
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    each, judged = cross_entropy(logits.transpose(1, 2), labels, reduction="none"), labels != IGNORED
    losses = each.sum(1) / judged.sum(1).clamp(min=1)
    same = ((logits.argmax(2) == labels) | ~judged).all(1)
    yield from map(Read, losses.tolist(), same.tolist())
