"""From sound files to batches: read, resampled, and put through the model's own processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ....errors import DataError
from ...base.sound_processor import SoundProcessor
from ...conversations.ledger import Ledger
from ...data.encode import Encoded
from ...data.readers.media_rows import SOUNDS
from ...data.rows import Rows
from ...data.sounds.sound_files import heard
from ..files.file_items import file_item

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True)
class SoundBatches:
    """Makes a batch of items: `audio` (a path or bytes), `where`, maybe `labels` and `task_ids`.

    Attributes:
        processor: the model's own.
        dtype: of the values; float32 if None.
    """

    processor: SoundProcessor
    dtype: torch.dtype | None = None

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What the extractor gives; `labels` and `task_ids` where the items have them."""
        import torch

        sounds = [heard(item["audio"], item["where"], self.processor.rate).values for item in items]
        out = values_of(self.processor, sounds)
        if self.dtype is not None:
            out = {key: v.to(self.dtype) if v.is_floating_point() else v for key, v in out.items()}
        for key in ("labels", "task_ids"):
            if isinstance(items[0].get(key), int):
                out[key] = torch.tensor([item[key] for item in items])
        return out


def values_of(processor: SoundProcessor, sounds: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
    """What a model takes of sounds; those beyond the longest are cut at their end."""
    longest = round(processor.seconds * processor.rate)
    cut = [sound[:longest] for sound in sounds]
    options: dict[str, Any] = {} if processor.fixed or processor.spectrogram else {"padding": True}
    return dict(processor.extractor(cut, sampling_rate=processor.rate, return_tensors="pt", **options))


def sound_items(
    rows: Rows, processor: SoundProcessor, ledger: Ledger, told: Callable[[], None], *, checked: bool, whole: bool
) -> Encoded:
    """Where each row's sound is, how it is called in messages, and how long it is.

    Args:
        ledger: is told how many were resampled, mixed down or left out.
        told: called for every sound.
        checked: every sound is read.
        whole: sounds that are too long are left out; else they are cut, and counted.

    Raises:
        DataError: a sound is not there, or some cannot be read; the first one is named.
    """
    out, unreadable = Encoded(rows=rows), list[DataError]()
    for index in range(len(rows)):
        item = file_item(rows, index, SOUNDS)
        if checked:
            told()
            try:
                sound = heard(item["audio"], item["where"], processor.rate)
            except DataError as error:
                unreadable.append(error)
                continue
            item["samples"] = len(sound.values)
            if sound.rate != processor.rate:
                ledger.told[f"sounds resampled from {sound.rate:,} to {processor.rate:,} Hz"] += 1
            if sound.channels > 1:
                ledger.told["sounds of several channels, which are averaged"] += 1
            if item["samples"] > processor.seconds * processor.rate:
                if whole:
                    ledger.told[f"sounds longer than {processor.seconds:g} s, which are left out"] += 1
                    continue
                out.truncated += 1
        out.items.append(item)
        out.source.append(index)
    if unreadable:
        first = unreadable[0]
        raise DataError(f"{len(unreadable)} of {len(rows)} sounds cannot be read; the first", where=first.where,
                        got=first.got, fix="take them out, or save them as WAV or FLAC")  # fmt: skip
    return out
