"""A model's own image processor, on Pillow: its values are the same on every machine, with torchvision or without."""

from __future__ import annotations

from typing import Any

from ...errors import CheckpointError, RecipeError
from ..recipe.sections import ModelSection
from .base_model import config_of

FILE = "preprocessor_config.json"


def load_image_processor(location: str, section: ModelSection) -> Any:
    """The processor, with images as large as `model.image_size` says.

    Raises:
        CheckpointError: the model has none.
        RecipeError: its model takes images of another size only.
    """
    from transformers import AutoImageProcessor

    try:
        out = AutoImageProcessor.from_pretrained(location, revision=section.revision or "main", backend="pil")
    except (OSError, ValueError, ImportError, TypeError, AttributeError) as error:
        got = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise CheckpointError("cannot load the image processor", where=location, got=got,
                              expected=f"a model of images, with {FILE}") from error  # fmt: skip
    if section.image_size is not None:
        _resize(out, section.image_size)
        _try(out, location, section, section.image_size)
    return out


def _resize(processor: Any, side: int) -> None:
    """Let a processor give squares of `side` pixels: the whole image, or the middle of it where it cuts images."""
    size, crop = processor.size, getattr(processor, "crop_size", None)
    if "shortest_edge" in size:
        cuts = crop is not None and getattr(processor, "do_center_crop", False)
        whole = round(side * size["shortest_edge"] / crop["height"]) if cuts else side  # type: ignore[index]
        processor.size = type(size)(shortest_edge=whole)
    else:
        processor.size = type(size)(height=side, width=side)
    if crop:
        processor.crop_size = type(crop)(height=side, width=side)


def _try(processor: Any, location: str, section: ModelSection, side: int) -> None:
    """Let an image through the shapes of the model.

    Raises:
        RecipeError: it takes another size only.
    """
    import torch
    from PIL import Image
    from transformers import AutoModelForImageClassification

    config = config_of(location, section)
    blank = processor(images=Image.new("RGB", (2 * side, side)), return_tensors="pt")
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config).eval()
        try:
            model(pixel_values=blank["pixel_values"].to("meta"))
        except (ValueError, RuntimeError) as error:
            raise RecipeError("the model takes images of its own size only", where="model.image_size",
                              got=side, expected=getattr(config, "image_size", None),
                              fix="leave it out") from error  # fmt: skip
