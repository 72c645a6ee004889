"""What a model of speech writes, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....errors import RecipeError
from ...answers.batches import in_batches
from ...answers.judge import judging, moved
from ...report.events import Progress, Reporter
from .sound_batches import SoundBatches

_LONGEST_ANSWER = 200
"""Tokens, where neither recipe nor command says."""


def written(
    model: Any, processor: Any, items: Sequence[dict[str, Any]], batch_size: int, max_new_tokens: int | None,
    reporter: Reporter, doing: str, *, cut: bool = False,
) -> list[str]:  # fmt: skip
    """What a model writes of every sound, greedily.

    Args:
        cut: no more is wanted than the model has room for.
    """
    batches, tokenizer = SoundBatches(processor), processor.tokenizer

    def judge(part: list[dict[str, Any]]) -> list[str]:
        given = moved(batches([{k: v for k, v in item.items() if k != "labels"} for item in part]), model)
        if processor.spells:
            ids = model(**given).logits.argmax(-1)
            return [str(text).strip() for text in tokenizer.batch_decode(ids)]
        ids = model.generate(**given, **_greedy(model, max_new_tokens, len(tokenizer.prefix_tokens), cut))
        return [str(text).strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    with judging(model):
        parts = in_batches(items, batch_size, judge,
                           lambda done: reporter.progress(Progress(doing, done, len(items))))  # fmt: skip
    return [text for part in parts for text in part]


def _greedy(model: Any, max_new_tokens: int | None, prefix: int, cut: bool) -> dict[str, Any]:
    """Settings of `generate` for reproducible answers.

    Raises:
        RecipeError: more is wanted than the model has places for.
    """
    room = model.config.max_target_positions - prefix
    if max_new_tokens is not None and max_new_tokens > room and not cut:
        raise RecipeError("the model has no room for so long an answer", where="max_new_tokens", got=max_new_tokens,
                          expected=f"at most {room}")  # fmt: skip
    return {"do_sample": False, "num_beams": 1, "max_new_tokens": min(max_new_tokens or _LONGEST_ANSWER, room)}
