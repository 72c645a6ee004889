"""From image files to batches: read, changed where that is wanted, and put through the model's own processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ....errors import DataError
from ...conversations.image_files import opened

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

LEAST_SIDE = 0.8
"""Of a cropped image, in shares of the whole one's."""


@dataclass(frozen=True)
class ImageBatches:
    """Makes a batch of items: `image` (a path or bytes), `where`, maybe `labels`, `task_ids` and `augment`.

    Attributes:
        processor: the model's own, on Pillow.
        dtype: of the values; float32 if None.
    """

    processor: Any
    dtype: torch.dtype | None = None

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`pixel_values` and whatever else the processor gives; `labels` and `task_ids` where the items have them."""
        import torch

        images = [_changed(opened(item["image"], item["where"]), item.get("augment", ())) for item in items]
        out = values_of(self.processor, images, items[0]["where"])
        if self.dtype is not None:
            out = {key: v.to(self.dtype) if v.is_floating_point() else v for key, v in out.items()}
        for key in ("labels", "task_ids"):
            if key in items[0]:
                out[key] = torch.tensor([item[key] for item in items])
        return out


def values_of(processor: Any, images: Sequence[Image], where: str) -> dict[str, Any]:
    """What a model takes of images.

    Raises:
        DataError: the processor refuses them, or leaves them in several sizes.
    """
    try:
        return dict(processor(images=list(images), return_tensors="pt"))
    except (ValueError, TypeError, IndexError) as error:
        got = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise DataError("the model's processor cannot make one batch of the images", where=where, got=got,
                        fix="let images have one size") from error  # fmt: skip


def _changed(image: Image, ways: Sequence[str]) -> Image:
    """An image mirrored or cut by chance; torch draws, as it does dropout, so that a resumed run goes on."""
    import torch
    from PIL import Image

    if "crop" in ways:
        share, left, top = torch.rand(3).tolist()
        width, height = (max(1, round(n * (LEAST_SIDE + (1 - LEAST_SIDE) * share))) for n in image.size)
        x, y = round(left * (image.width - width)), round(top * (image.height - height))
        image = image.crop((x, y, x + width, y + height))
    if "flip" in ways and float(torch.rand(())) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image
