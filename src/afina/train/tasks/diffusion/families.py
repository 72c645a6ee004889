"""What differs between pipelines: how captions are read, and what the model that removes noise is given with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ....errors import CheckpointError
from ...base.pipelines.pipeline_folder import index_of

Tensors = Mapping[str, Tensor]
_GUIDANCE = 3.5
"""As scripts of diffusers train Flux, and its pipeline draws by default."""


class Family(ABC):
    """Pipelines of one architecture.

    Attributes:
        pipelines: their classes in diffusers.
        denoiser: the part that removes noise.
        encoders: the parts that read captions, each with its tokenizer.
        encoders_train: whether they can be adapted too.
        compares: whether guidance takes a pass without caption beside each.
    """

    pipelines: ClassVar[tuple[str, ...]]
    denoiser: ClassVar[str] = "unet"
    encoders: ClassVar[Mapping[str, str]]
    encoders_train: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    def sides(self, config: Mapping[str, Any]) -> tuple[int | None, int]:
        """The side of latents that the denoiser is made for, and what a side must be a multiple of."""
        own = config.get("sample_size")
        return own if isinstance(own, int) or own is None else own[0], 2 ** (len(config["block_out_channels"]) - 1)

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
            timesteps: (B,), as `Noising.told` has them.
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


class Flux(Family):
    """Flux: a transformer over patches of two by two latents, CLIP's text model and T5; flow matching."""

    pipelines: ClassVar[tuple[str, ...]] = ("FluxPipeline",)
    denoiser: ClassVar[str] = "transformer"
    encoders: ClassVar[Mapping[str, str]] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    encoders_train: ClassVar[bool] = False  # diffusers reads no adapter of T5
    compares: ClassVar[bool] = False

    def sides(self, config: Mapping[str, Any]) -> tuple[int | None, int]:
        """Those of the pipeline's own images, of 1024 pixels."""
        return 128, 2

    def words(self, encoders: Mapping[str, Any], tokens: Tensors) -> dict[str, Tensor]:
        """`prompt`: T5's hidden states; `pooled`: that of CLIP's end of text."""
        read = {name: encoders[name](tokens[name]) for name in self.encoders}
        return {"prompt": read["text_encoder_2"][0], "pooled": read["text_encoder"].pooler_output}

    def denoised(self, model: Any, noisy: Tensor, timesteps: Tensor, given: Tensors) -> Tensor:
        """Of the transformer; models that are told how far a caption outweighs none are told `_GUIDANCE`."""
        patches = pixel_unshuffle(noisy, 2)
        rows, columns = torch.meshgrid(*map(torch.arange, patches.shape[2:]), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).view(-1, 3).to(noisy)
        guided = model.config.guidance_embeds
        out: Tensor = model(
            hidden_states=patches.flatten(2).mT, timestep=timesteps.to(noisy.dtype), pooled_projections=given["pooled"],
            guidance=noisy.new_full((len(noisy),), _GUIDANCE) if guided else None, img_ids=places,
            encoder_hidden_states=given["prompt"], txt_ids=noisy.new_zeros(given["prompt"].shape[1], 3),
        ).sample  # fmt: skip
        return pixel_shuffle(out.mT.reshape(patches.shape), 2)


_FAMILIES: tuple[Family, ...] = (StableDiffusion(), StableDiffusionXL(), Flux())


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
