"""From sounds and the tokens of their texts to batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...data.encode import IGNORED
from .sound_batches import SoundBatches


class SpeechBatches:
    """Batches of sounds with their texts; a model that writes is told where it is, and learns what comes next."""

    def __init__(self, sounds: SoundBatches) -> None:
        self.sounds = sounds

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        out = self.sounds(items)
        if "labels" not in items[0]:
            return out
        texts = [torch.tensor(item["labels"], dtype=torch.long) for item in items]
        if self.sounds.processor.spells:
            out["labels"] = pad_sequence(texts, batch_first=True, padding_value=IGNORED)
            return out
        told = [torch.tensor(item["prefix"], dtype=torch.long) for item in items]
        pad = int(self.sounds.processor.tokenizer.pad_token_id)
        read = [torch.cat([before, text[:-1]]) for before, text in zip(told, texts, strict=True)]
        learnt = [torch.cat([torch.full_like(before[1:], IGNORED), text])
                  for before, text in zip(told, texts, strict=True)]  # fmt: skip
        out["decoder_input_ids"] = pad_sequence(read, batch_first=True, padding_value=pad)
        out["labels"] = pad_sequence(learnt, batch_first=True, padding_value=IGNORED)
        return out
