"""From rows to items, and from items to batches: latents of images with captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....errors import DataError
from ...conversations.image_files import opened
from ...data.encode import Encoded
from ...data.prompts import Prompter
from ...data.readers.media_rows import IMAGES
from ...data.rows import Rows
from ..files.file_items import file_item
from .captions import PipelineReader
from .noising import FIXED, Noising

_READ_AT_ONCE = 32
PRIOR = "prior"
"""Beside an item: another one of what its subject is one of."""


def caption_of(rows: Rows, index: int, prompter: Prompter) -> str:
    """What a row's image shows.

    Raises:
        DataError: the row does not say it, and the recipe has no caption for all.
    """
    column = prompter.data.text_column
    if prompter.data.instance_prompt is not None and column not in rows.values[index]:
        return prompter.data.instance_prompt
    if column not in rows.values[index]:
        raise DataError("an image without a caption", where=rows.where(index),
                        got=f"columns {', '.join(map(repr, rows.values[index]))}",
                        fix="a column text, a .txt file beside each image, or one for all: data.instance_prompt=...",
                        )  # fmt: skip
    return rows.text(index, column)


def image_items(rows: Rows, prompter: Prompter) -> Encoded:
    """Latents and captions of rows; each image is read once.

    Raises:
        DataError: an image cannot be read, or has no caption.
    """
    reader: Any = prompter.tokenizer
    captions = [caption_of(rows, index, prompter) for index in range(len(rows))]
    items = [{**file_item(rows, index, IMAGES), "caption": captions[index]} for index in range(len(rows))]
    for start in range(0, len(items), _READ_AT_ONCE):
        part = items[start : start + _READ_AT_ONCE]
        for item, found in zip(part, reader.latents([opened(i["image"], i["where"]) for i in part]), strict=True):
            item["latents"] = found
            if prompter.images is not None:
                prompter.images.heard()
    for item, words in zip(items, reader.captions(captions), strict=True):
        item["words"] = words
    return Encoded(items, list(range(len(items))), rows=rows)


def held_still(items: Sequence[dict[str, Any]]) -> None:
    """Give held-out items the seed of the noise that each is judged with, always the same: the noise of all of them
    would take four times the memory of their latents."""
    for number, item in enumerate(items):
        item["still"] = number


def _noise(item: dict[str, Any]) -> Tensor:
    generator = torch.Generator().manual_seed(item["still"])
    return torch.randn(FIXED, *item["latents"]["means"].shape, generator=generator)


@dataclass(frozen=True)
class NoisyBatches:
    """Makes a batch of items; those that are held still come once for each of their timesteps, without a draw.

    Attributes:
        prior_weight: of what stands beside an item in the loss.
        empty: of no caption, where some are left out.
    """

    reader: PipelineReader
    prior_weight: float = 1.0
    empty: dict[str, Tensor] | None = None

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """What `Denoiser.forward` takes."""
        both = [*items, *(item[PRIOR] for item in items if PRIOR in item)]
        out = {key: torch.stack([item["latents"][key] for item in both]) for key in ("means", "deviations", "frames")}
        out |= {key: torch.stack([item["words"][key] for item in both]) for key in both[0]["words"]}
        if len(both) > len(items):
            each = [1.0] * len(items) + [self.prior_weight] * (len(both) - len(items))
            out["weights"] = torch.tensor(each) / len(items)
        if "still" in items[0]:
            return _at_each_timestep(out, items, self.reader.noising)
        return out | {f"empty_{key}": value[None] for key, value in (self.empty or {}).items()}


def _at_each_timestep(
    batch: dict[str, Tensor], items: Sequence[dict[str, Any]], noising: Noising
) -> dict[str, Tensor]:  # fmt: skip
    out = {key: value.repeat_interleave(FIXED, 0) for key, value in batch.items() if key != "deviations"}
    out["timesteps"] = noising.fixed().repeat(len(items))
    out["noise"] = torch.cat([_noise(item) for item in items])
    return out
