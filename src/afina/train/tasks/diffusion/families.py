"""What differs between pipelines: how captions are read, and what the model that removes noise is given with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ....errors import CheckpointError
from ...base.pipelines.pipeline_folder import index_of

Tensors = Mapping[str, Tensor]


class Family(ABC):
    """Pipelines of one architecture.

    Attributes:
        pipelines: their classes in diffusers.
        denoiser: the part that removes noise.
        encoders: the parts that read captions, each with its tokenizer.
    """

    pipelines: ClassVar[tuple[str, ...]]
    denoiser: ClassVar[str] = "unet"
    encoders: ClassVar[Mapping[str, str]]

    def tokens(self, tokenizers: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Tensor]:
        """Name of an encoder -> its tokens of the captions, (captions, T)."""
        return {
            encoder: tokenizers[tokenizer](
                list(captions), padding="max_length", truncation=True, return_tensors="pt",
                max_length=tokenizers[tokenizer].model_max_length,
            ).input_ids
            for encoder, tokenizer in self.encoders.items()
        }  # fmt: skip

    @abstractmethod
    def words(self, encoders: Mapping[str, Any], tokens: Tensors) -> dict[str, Tensor]:
        """What the denoiser is given of captions, each (captions, ...)."""

    @abstractmethod
    def denoised(self, model: Any, noisy: Tensor, timesteps: Tensor, given: Tensors) -> Tensor:
        """The denoiser's prediction for noisy latents (B, C, H, W).

        Args:
            given: `words`, and `frames` (B, 6): height and width of an image, where it was cut at the top and on the
                left, height and width of what was cut out.
        """


class StableDiffusion(Family):
    """Stable Diffusion 1 and 2: a U-Net and CLIP's text model."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    encoders: ClassVar[Mapping[str, str]] = {"text_encoder": "tokenizer"}

    def words(self, encoders: Mapping[str, Any], tokens: Tensors) -> dict[str, Tensor]:
        """`prompt`: the last hidden states."""
        return {"prompt": encoders["text_encoder"](tokens["text_encoder"])[0]}

    def denoised(self, model: Any, noisy: Tensor, timesteps: Tensor, given: Tensors) -> Tensor:
        """Of the U-Net."""
        out: Tensor = model(noisy, timesteps, given["prompt"]).sample
        return out


class StableDiffusionXL(Family):
    """SDXL: a U-Net, two text models of CLIP, and what was cut out of an image (Podell et al., 2023)."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionXLPipeline",)
    encoders: ClassVar[Mapping[str, str]] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}

    def words(self, encoders: Mapping[str, Any], tokens: Tensors) -> dict[str, Tensor]:
        """`prompt`: the hidden states before the last of both; `pooled`: the second one's projection."""
        read = [encoders[name](tokens[name], output_hidden_states=True) for name in self.encoders]
        return {"prompt": torch.cat([one.hidden_states[-2] for one in read], -1), "pooled": read[1][0]}

    def denoised(self, model: Any, noisy: Tensor, timesteps: Tensor, given: Tensors) -> Tensor:
        """Of the U-Net."""
        more = {"text_embeds": given["pooled"], "time_ids": given["frames"].to(noisy.dtype)}
        out: Tensor = model(noisy, timesteps, given["prompt"], added_cond_kwargs=more).sample
        return out


_FAMILIES: tuple[Family, ...] = (StableDiffusion(), StableDiffusionXL())


def family_of(location: str) -> Family:
    """The family of the pipeline in a folder.

    Raises:
        CheckpointError: it is none that can be trained.
    """
    name = str(index_of(location).get("_class_name"))
    found = next((family for family in _FAMILIES if name in family.pipelines), None)
    if found is None:
        known = ", ".join(kind for family in _FAMILIES for kind in family.pipelines)
        raise CheckpointError("this kind of pipeline is not trained", where=location, got=name, expected=known)
    return found
