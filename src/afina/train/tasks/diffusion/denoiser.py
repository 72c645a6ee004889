"""The part of a pipeline that trains, as one model with a loss: its denoiser, and its text encoders if they train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.utils import ModelOutput

from ....errors import RecipeError
from ...base.pipelines.pipeline_folder import load_part, sketched_part, unloadable, without_bars
from ...recipe.sections import ModelSection
from .families import family_of
from .noising import Noising


@dataclass
class Denoised(ModelOutput):  # type: ignore[misc]
    """What was found of a batch.

    Attributes:
        loss: weighted mean of `losses`.
        losses: mean squared error of each row, (B,).
        sample: the prediction, (B, C, H, W).
    """

    loss: Tensor | None = None
    losses: Tensor | None = None
    sample: Tensor | None = None


class PartsConfig(PretrainedConfig):  # type: ignore[misc]
    """What trainers and methods ask a model for."""

    model_type = "diffusion"


def dtype_of(section: ModelSection) -> torch.dtype:
    """Of a pipeline's parts as a recipe has it: "auto" is float32."""
    out: torch.dtype = getattr(torch, "float32" if section.dtype == "auto" else section.dtype)
    return out


class Denoiser(nn.Module):
    """Predicts what was mixed into latents. Parts are children under the names that the pipeline gives them.

    Attributes:
        name_or_path: the pipeline's folder.
        caption_dropout: share of rows that training leaves the caption out of.
    """

    supports_gradient_checkpointing = True
    is_gradient_checkpointing = False

    def __init__(self, location: str, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.name_or_path, self.family, self.noising = location, family_of(location), Noising.of(location)
        self.config, self.caption_dropout = PartsConfig(name_or_path=location), 0.0
        for name, part in parts.items():
            self.add_module(name, part)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: Any = None, device_map: Mapping[str, Any] | None = None,
        train_text_encoder: bool = True,
    ) -> Denoiser:  # fmt: skip
        """The parts of a pipeline's folder.

        Raises:
            CheckpointError: one cannot be loaded.
        """
        location, names = str(folder), cls._named(str(folder), train_text_encoder)
        made = cls(location, {name: load_part(location, name, dtype or torch.float32) for name in names})
        return made.to((device_map or {}).get("", "cpu"))

    @classmethod
    def sketched(cls, location: str, dtype: torch.dtype, train_text_encoder: bool) -> Denoiser:
        """The same by the parts' configs alone.

        Raises:
            CheckpointError: one cannot be made.
        """
        names = cls._named(location, train_text_encoder)
        return cls(location, {name: nn.Module.to(sketched_part(location, name), dtype) for name in names})

    @staticmethod
    def _named(location: str, train_text_encoder: bool) -> list[str]:
        family = family_of(location)
        return [family.denoiser, *(family.encoders if train_text_encoder else ())]

    @property
    def parts(self) -> dict[str, Any]:
        """Name -> model."""
        return dict(self.named_children())

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the denoiser's own weights."""
        out: torch.dtype = self.parts[self.family.denoiser].dtype
        return out

    def gradient_checkpointing_enable(self, settings: Any = None, **how: Any) -> None:
        """Recompute activations in every part, as each does it by itself."""
        self._checkpointing("enable")

    activation_checkpointing_enable = gradient_checkpointing_enable
    """The same under the name that newer releases of transformers ask for."""

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations."""
        self._checkpointing("disable")

    def _checkpointing(self, verb: str) -> None:
        for part in self.parts.values():  # models of diffusers, and of transformers
            own = f"{verb}_gradient_checkpointing"
            getattr(part, own if hasattr(part, own) else f"gradient_checkpointing_{verb}")()
        self.is_gradient_checkpointing = verb == "enable"

    def save_pretrained(self, folder: str | Path, state_dict: Any = None, **kwargs: Any) -> None:
        """Write the whole pipeline, with these parts in the place of its own.

        Raises:
            RecipeError: the weights are in parts.
        """
        if state_dict is not None:
            raise RecipeError("a pipeline is trained as a whole in one process", where="distributed")
        self.pipeline().save_pretrained(folder)

    def pipeline(self) -> Any:
        """The pipeline of diffusers with these parts in it; the others are read from its folder.

        Raises:
            CheckpointError: one cannot be.
        """
        from diffusers import DiffusionPipeline

        with unloadable("pipeline", self.name_or_path), without_bars():
            made = DiffusionPipeline.from_pretrained(self.name_or_path, torch_dtype=self.dtype, **self.parts)
        made.set_progress_bar_config(disable=True)
        return made.to(self.device)

    def forward(
        self, *, means: Tensor, deviations: Tensor | None = None, timesteps: Tensor | None = None,
        noise: Tensor | None = None, weights: Tensor | None = None, **given: Tensor,
    ) -> Denoised:  # fmt: skip
        """The loss of predicting what was mixed into latents.

        Args:
            means: of the latents, (B, C, H, W), scaled as the denoiser takes them.
            deviations: theirs; latents are drawn where they are given.
            timesteps: (B,); drawn if None. noise: as `means`; drawn if None.
            weights: of the rows in the loss, (B,), which sum to what the loss is to be; the mean if None.
            given: `words` of captions, or `tokens_of_*` of them; `frames`; the same of no caption with `empty_`.
        """
        latents = means if deviations is None else means + deviations * torch.randn_like(means)
        noise = torch.randn_like(latents) if noise is None else noise
        timesteps = self.noising.drawn(len(latents), latents.device) if timesteps is None else timesteps
        noisy, target = self.noising.mixed(latents, noise, timesteps)
        words = {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in self._read(given).items()}
        denoiser = self.parts[self.family.denoiser]
        sample = self.family.denoised(denoiser, noisy.to(self.dtype), self.noising.told(timesteps), words)
        losses = (sample.float() - target.float()).square().flatten(1).mean(1)
        loss = losses.mean() if weights is None else (losses * weights).sum()
        return Denoised(loss=loss, losses=losses, sample=sample)

    def _read(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the denoiser is given of captions; some of them left out while training."""
        own, empty = self._words(given, ""), {}
        if self.training and self.caption_dropout:
            empty = self._words(given, "empty_")
            left_out = torch.rand(len(next(iter(own.values()))), device=self.device) < self.caption_dropout
        for name, of_none in empty.items():
            own[name] = torch.where(left_out.view(-1, *[1] * (own[name].ndim - 1)), of_none, own[name])
        return {**own, **({"frames": given["frames"]} if "frames" in given else {})}

    def _words(self, given: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        tokens = {name: given[f"{prefix}tokens_of_{name}"] for name in self.family.encoders
                  if f"{prefix}tokens_of_{name}" in given}  # fmt: skip
        if tokens:
            return self.family.words(self.parts, tokens)
        known = ("prompt", "pooled")
        return {name: given[prefix + name] for name in known if prefix + name in given}
