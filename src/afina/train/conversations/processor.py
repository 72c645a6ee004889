"""A model's own processor of texts with images.

It writes as many tokens into a text as each image takes, and gives values of the images (`pixel_values` and
the like, in layouts that differ between models) and sometimes one for each token (`token_type_ids` and the like).
Tokens are kept with an item; images are read again for every batch, because their values are large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import CheckpointError, DataError
from ..base.base_model import origin_of
from .image_files import opened

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_WHOLE = ("input_ids", "attention_mask")
"""What a processor gives of the text, which items have already."""


@dataclass(frozen=True)
class Seen:
    """What a model sees before it answers.

    Attributes:
        text: as the chat template writes it, each image one word.
        images: as `conversations.images` has them.
        ids: tokens of the text, with those that the images take.
        by_token: what else the model takes for each token, by its name.
    """

    text: str
    images: tuple[Any, ...]
    ids: list[int]
    by_token: Mapping[str, list[int]]


@dataclass(frozen=True)
class Images:
    """A model's processor of texts with images.

    Attributes:
        what: it reads.
        heard: called for every text that is read with its images, or every image or sound, which takes its time.
    """

    what: ClassVar[str] = "images"
    processor: Any
    heard: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Images:
        """That of the model which the tokenizer was loaded with; the tokenizer stays.

        Raises:
            CheckpointError: the model has none, or it lacks a package.
        """
        from transformers import AutoProcessor

        location, revision = origin_of(tokenizer)
        try:
            processor = AutoProcessor.from_pretrained(location, revision=revision)
        except (OSError, ValueError, ImportError, AttributeError, TypeError) as error:
            got = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise CheckpointError("cannot load the processor of images", where=location, got=got) from error
        if not hasattr(processor, "image_processor"):
            raise CheckpointError("the model sees no images", where=location, got=type(processor).__name__,
                                  expected="a processor of texts and images")  # fmt: skip
        processor.tokenizer = tokenizer
        return cls(processor)

    def seen(self, text: str, images: Sequence[Any], where: str) -> Seen:
        """A text with its images.

        Raises:
            DataError: an image cannot be read, or the text has another number of places than there are images.
        """
        self.heard()
        loaded = [opened(image, where) for image in images]
        try:
            found = self.processor(
                text=[text], images=[loaded] if loaded else None, add_special_tokens=False, padding=False
            )
        except (ValueError, IndexError, StopIteration) as error:
            got = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise DataError("the model's processor cannot put the images into the text", where=where, got=got,
                            fix="use a chat template that has places for images") from error  # fmt: skip
        ids = list(found["input_ids"][0])
        if loaded and ids == self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]:
            raise DataError("the chat template has no place for images", where=where, got=f"{len(loaded)} images",
                            fix="use the template of a model that sees images")  # fmt: skip
        return Seen(text, tuple(images), ids, {k: list(v[0]) for k, v in found.items() if _is_by_token(k, v, ids)})

    def inputs(self, batch: Sequence[Seen], width: int, *, left: bool) -> dict[str, Tensor]:
        """What the model takes beside tokens: of the images, and [rows, width] for values of each token.

        Args:
            left: whether the tokens are padded on the left, not on the right.
        """
        import torch

        out: dict[str, Tensor] = {}
        having = [one for one in batch if one.images]
        if having:
            given = self.processor(
                text=[one.text for one in having], images=[[opened(i, "") for i in one.images] for one in having],
                add_special_tokens=False, padding=True, return_tensors="pt",
            )  # fmt: skip
            names = {name for one in having for name in one.by_token}
            out = {name: value for name, value in given.items() if name not in {*names, *_WHOLE}}
        for name in dict.fromkeys(name for one in batch for name in one.by_token):
            rows = torch.zeros(len(batch), width, dtype=torch.long)
            for row, one in zip(rows, batch, strict=True):
                values = torch.tensor(one.by_token.get(name, [])[:width], dtype=torch.long)
                start = width - len(values) if left else 0
                row[start : start + len(values)] = values
            out[name] = rows
        return out

    def keep(self, folder: Path) -> None:
        """Write the processor and its tokenizer."""
        self.processor.save_pretrained(folder)


class Sounds(Images):
    """A model's processor of sounds."""

    what: ClassVar[str] = "sounds"


def _is_by_token(name: str, values: Any, ids: Sequence[int]) -> bool:
    """Whether these are values of each token."""
    first = values[0] if len(values) else None
    return name not in _WHOLE and isinstance(first, list) and len(first) == len(ids)
