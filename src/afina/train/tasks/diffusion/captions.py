"""What reads rows for a pipeline: captions by its text encoders, images by its VAE, each once and before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ....devices.memory_use import trim
from ....devices.place import place
from ....errors import CheckpointError, RecipeError
from ...base.pipelines.pipeline_folder import config_of_part, load_part
from ...recipe.sections import ModelSection
from .families import Family, family_of
from .noising import Noising

if TYPE_CHECKING:
    from PIL.Image import Image

AT_ONCE = 8
"""Images, or captions, that are read in one pass."""
TOKENS = "tokens_of_"
"""Before an encoder's name: what a batch has for it, where it trains."""


@dataclass
class PipelineReader:
    """A pipeline's tokenizers, and its frozen parts as long as they are needed.

    Attributes:
        location: the pipeline's folder.
        size: pixels of a side of its images. unit: what that is a multiple of.
        frozen: parts that are loaded.
        known: captions that were read, and what the denoiser is given of them.
    """

    location: str
    section: ModelSection
    size: int
    unit: int
    tokenizers: dict[str, Any]
    frozen: dict[str, Any] = field(default_factory=dict)
    known: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, location: str, section: ModelSection) -> Self:
        """That of a pipeline's folder.

        Raises:
            CheckpointError: a part cannot be read.
            RecipeError: its images cannot have that size, or its text encoders cannot train.
        """
        family = family_of(location)
        if section.train_text_encoder and not family.encoders_train:
            raise RecipeError("text encoders of this pipeline stay as they are", where="model.train_text_encoder",
                              got=", ".join(family.pipelines), fix="leave it out")  # fmt: skip
        shrunk, (side, step) = shrunk_by(location), family.sides(config_of_part(location, family.denoiser))
        size, unit = section.image_size or (side or 0) * shrunk, shrunk * step
        if not size or size % unit:
            raise RecipeError("a pipeline's images have sides that its layers can halve", where="model.image_size",
                              got=size or None, expected=f"a multiple of {unit}")  # fmt: skip
        return cls(location, section, size, unit, {t: load_part(location, t) for t in family.encoders.values()})

    @property
    def family(self) -> Family:
        """What kind of pipeline it is."""
        return family_of(self.location)

    @property
    def noising(self) -> Noising:
        """The forward process of the pipeline."""
        return Noising.of(self.location)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels and sides of an image's latents."""
        side = self.size // shrunk_by(self.location)
        return int(config_of_part(self.location, "vae")["latent_channels"]), side, side

    def save_pretrained(self, folder: Any) -> None:
        """Nothing: a pipeline has its own."""

    def release(self) -> None:
        """Give up the frozen parts, and their memory to the system; what they said is kept."""
        if self.frozen:
            self.frozen.clear()
            trim()

    def part(self, name: str) -> Any:
        """A frozen part, loaded where it is not."""
        if name not in self.frozen:
            part = load_part(self.location, name, torch.float32).eval().requires_grad_(False)
            self.frozen[name] = part.to(place(self.section.device).name)
        return self.frozen[name]

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        """Of each caption what a batch has of it: tokens where text encoders train, else what they say of them.

        Those of equal captions are the same tensors.
        """
        new = [caption for caption in dict.fromkeys(captions) if caption not in self.known]
        for start in range(0, len(new), AT_ONCE):
            part = new[start : start + AT_ONCE]
            words = self.said(self.family.tokens(self.tokenizers, part))
            self.known |= {caption: {name: values[i].cpu().clone() for name, values in words.items()}
                           for i, caption in enumerate(part)}  # fmt: skip
        return [self.known[caption] for caption in captions]

    def said(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a batch has of tokens of captions."""
        if self.section.train_text_encoder:
            return {TOKENS + name: ids for name, ids in tokens.items()}
        encoders = {name: self.part(name) for name in self.family.encoders}
        device = place(self.section.device).name
        return self.family.words(encoders, {name: ids.to(device) for name, ids in tokens.items()})

    @torch.no_grad()
    def latents(self, images: Sequence[Image]) -> list[dict[str, Tensor]]:
        """Of each image the `means` and `deviations` of its latents, (C, H, W), and `frames`, (6,)."""
        out: list[dict[str, Tensor]] = []
        for start in range(0, len(images), AT_ONCE):
            cut = [squared(image, self.size) for image in images[start : start + AT_ONCE]]
            means, deviations = self.encoded(torch.stack([values for values, _ in cut]))
            out += [{"means": means[i].clone(), "deviations": deviations[i].clone(), "frames": frames}
                    for i, (_, frames) in enumerate(cut)]  # fmt: skip
        return out

    def encoded(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Means and deviations of the latents of images (B, 3, H, W), each (B, C, h, w)."""
        vae = self.part("vae")
        shift, scale = vae.config.get("shift_factor") or 0.0, vae.config.get("scaling_factor") or 1.0
        found = vae.encode(values.to(vae.device)).latent_dist
        return ((found.mean - shift) * scale).cpu(), (found.std * scale).cpu()


def shrunk_by(location: str) -> int:
    """Pixels of an image's side for one of its latents'.

    Raises:
        CheckpointError: its VAE is of an unknown kind.
    """
    config = config_of_part(location, "vae")
    if config.get("_class_name") != "AutoencoderKL":
        raise CheckpointError("this kind of VAE is not read", where=location, got=config.get("_class_name"),
                              expected="AutoencoderKL")  # fmt: skip
    return int(2 ** (len(config["block_out_channels"]) - 1))


def squared(image: Image, size: int) -> tuple[Tensor, Tensor]:
    """An image as values from -1 to 1, (3, size, size): its shorter side made `size`, its middle cut out; and its
    frame, as SDXL is told of it."""
    import numpy as np
    from PIL.Image import Resampling

    width, height = image.size
    ratio = size / min(width, height)
    fitted = image.resize((max(size, round(width * ratio)), max(size, round(height * ratio))), Resampling.LANCZOS)
    left, top = (fitted.width - size) // 2, (fitted.height - size) // 2
    cut = np.asarray(fitted.crop((left, top, left + size, top + size)), dtype=np.float32)
    values = torch.from_numpy(cut / 127.5 - 1).permute(2, 0, 1).contiguous()
    return values, torch.tensor([height, width, top, left, size, size], dtype=torch.float32)
