"""Greedy answers that are known from the pass that measured the loss.

Where the likeliest token is the trained one at every place of an answer, decoding writes that answer: each step has
before it what the pass had. Only the other answers need to be decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..data.encode import IGNORED, Encoded
from ..data.prompts import Prompter
from .generate import end_tokens
from .item_pass import Read


def foretold(
    model: Any, prompter: Prompter, encoded: Encoded, read: Sequence[Read], asked: Sequence[list[int]], *,
    encoder: bool, max_new_tokens: int,
) -> dict[int, str]:  # fmt: skip
    """The answers that need no decoding, by the row they answer.

    Args:
        encoded: the rows' items, and `read` what the model says of each.
        asked: the tokens that each row's answer would be decoded from.
    """
    ends, items_of, out = set(end_tokens(model, prompter)), Counter(encoded.source), {}
    for item, row, one in zip(encoded.items, encoded.source, read, strict=True):
        if not one.expected or items_of[row] > 1:  # a turn of several
            continue
        given, answer = _parted(item, encoder)
        last = next((n for n, token in enumerate(answer) if token in ends), None)
        if given == asked[row] and last is not None and last < max_new_tokens:
            out[row] = prompter.said(prompter.decoded(answer[: last + 1]))
    return out


def _parted(item: dict[str, Any], encoder: bool) -> tuple[list[int], list[int]]:
    """What an item is asked, and the answer that is trained; no answer where it does not lie at the end."""
    ids, labels = list(item["input_ids"]), list(item["labels"])
    if encoder:
        return ids, labels
    begin = next((n for n, label in enumerate(labels) if label != IGNORED), len(labels))
    return (ids[:begin], ids[begin:]) if IGNORED not in labels[begin:] else (ids, [])
