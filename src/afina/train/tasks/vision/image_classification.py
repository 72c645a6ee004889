"""One label for an image: a fresh head on a vision model (ViT, ConvNeXt, ResNet, CLIP)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ....core.inject.architectures import HEAD_NAMES
from ....core.model.peft_model import PeftModel
from ....errors import DataError
from ...base.image_processor import FILE, load_image_processor
from ...conversations.image_files import opened, thumbnail
from ...conversations.processor import Images
from ...data.encode import Data, Encoded
from ...data.prompts import Prompter
from ...data.readers.media_rows import IMAGES, Medium
from ...data.rows import Rows
from ...recipe.sections import DataSection, ModelSection, Recipe
from ...report.events import Reporter
from ..files.file_classes import FileClassification
from ..files.file_items import file_item
from .image_batches import ImageBatches, values_of
from .statistics import keep_statistics


class ImageClassification(FileClassification):
    """Images and labels."""

    name: ClassVar[str] = "image_classification"
    loader: ClassVar[str] = "AutoModelForImageClassification"
    columns: ClassVar[str] = "image and label, or a folder of images for each label"
    shares: ClassVar[str] = "exactly"
    reader_file: ClassVar[str] = FILE
    medium: ClassVar[str] = "images"
    of: ClassVar[Medium] = IMAGES
    heads: ClassVar[tuple[str, ...]] = HEAD_NAMES

    def reader(self, location: str, section: ModelSection, reporter: Reporter) -> Any:
        """The model's image processor."""
        return load_image_processor(location, section)

    def prompter(self, data: DataSection, tokenizer: Any) -> Prompter:
        """One that keeps the image processor."""
        return Prompter(data, tokenizer, Images(tokenizer))

    def file_items(self, rows: Rows, prompter: Prompter, *, checked: bool) -> Encoded:
        """Where each image is.

        Raises:
            DataError: an image cannot be read, or the processor leaves images of several sizes.
        """
        heard = prompter.images.heard if prompter.images else lambda: None
        items = image_items(rows, heard, prompter.tokenizer if checked else None)
        return Encoded(items, list(range(len(items))), rows=rows)

    def shown(self, item: dict[str, Any]) -> str:
        """The image, small."""
        return thumbnail(opened(item["image"], item["where"]))

    def collator(self, tokenizer: Any) -> Any:
        """Reads images and lets the processor make a batch of them."""
        return ImageBatches(tokenizer)

    def trainer(self, recipe: Recipe, model: Any, tokenizer: Any, data: Data, arguments: Any) -> Any:
        """Training images are changed as the recipe says; the base's normalisation keeps its statistics."""
        for item in data.train.items if recipe.training.augment else ():
            item["augment"] = tuple(recipe.training.augment)
        if isinstance(model, PeftModel):
            keep_statistics(model)
        out = super().trainer(recipe, model, tokenizer, data, arguments)
        out.data_collator = ImageBatches(tokenizer, model.dtype)
        return out

    def probe(self, prompter: Prompter, text: str, device: Any) -> dict[str, Any]:
        """An image of noise that is drawn by the text."""
        import numpy as np
        from PIL import Image

        noise = np.random.default_rng(list(text.encode())).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        return {k: v.to(device) for k, v in values_of(prompter.tokenizer, [Image.fromarray(noise)], text).items()}


def image_items(rows: Rows, heard: Callable[[], None], processor: Any = None) -> list[dict[str, Any]]:
    """Where each row's image is, and how it is called in messages.

    Args:
        heard: called for every image.
        processor: where given, every image is read, and one of each size is put through it.

    Raises:
        DataError: a row has no image, or it cannot be read.
    """
    out: list[dict[str, Any]] = []
    sizes: dict[tuple[int, int], tuple[int, ...]] = {}
    for index in range(len(rows)):
        out.append(file_item(rows, index, IMAGES))
        if processor is not None:
            image = opened(out[-1]["image"], out[-1]["where"])
            if image.size not in sizes and len(set(sizes.values())) < 2:
                sizes[image.size] = tuple(values_of(processor, [image], rows.where(index))["pixel_values"].shape)
                _check_sizes(set(sizes.values()), out[-1]["where"])
            heard()
    return out


def _check_sizes(shapes: set[tuple[int, ...]], where: str) -> None:
    if len(shapes) > 1:
        raise DataError("the model's processor leaves images in several sizes, which no batch can hold", where=where,
                        got=" and ".join(" x ".join(map(str, s[-2:])) for s in sorted(shapes)),
                        fix="save all images in one size")  # fmt: skip
