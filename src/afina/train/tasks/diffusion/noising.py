"""How images are made noisy, and what a model is to say of them: as the pipeline's scheduler has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...base.pipelines.pipeline_folder import config_of_part

FIXED = 8
"""Timesteps at which a held-out image is judged, evenly over all."""


@dataclass(frozen=True)
class Noising:
    """The forward process of a pipeline.

    Attributes:
        scheduler: diffusers' DDPM scheduler with the pipeline's own settings; None where the noise flows in evenly
            (flow matching).
        steps: timesteps in all.
    """

    scheduler: Any
    steps: int

    @classmethod
    def of(cls, location: str) -> Noising:
        """That of a pipeline's folder."""
        from diffusers import DDPMScheduler

        config = config_of_part(location, "scheduler", "scheduler_config.json")
        steps = int(config.get("num_train_timesteps", 1000))
        if str(config.get("_class_name", "")).startswith("FlowMatch"):
            return cls(None, steps)
        return cls(DDPMScheduler.from_config(config), steps)

    def drawn(self, rows: int, device: Any) -> Tensor:
        """Timesteps (rows,), drawn by torch's own generator, whose state checkpoints keep."""
        return torch.randint(0, self.steps, (rows,), device=device)

    def fixed(self) -> Tensor:
        """The `FIXED` timesteps of held-out images."""
        return ((torch.arange(FIXED) + 0.5) * self.steps / FIXED).long()

    def told(self, timesteps: Tensor) -> Tensor:
        """What the model is told of them: in flow matching the share of noise, else themselves."""
        return (timesteps + 1) / self.steps if self.scheduler is None else timesteps

    def mixed(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy latents, and what is to be predicted of them: noise, velocity or the latents by `prediction_type`; in
        flow matching, noise less latents."""
        if self.scheduler is None:
            share = self.told(timesteps)[:, None, None, None].to(latents.dtype)
            return (1 - share) * latents + share * noise, noise - latents
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return noisy, noise
        if kind == "sample":
            return noisy, latents
        return noisy, self.scheduler.get_velocity(latents, noise, timesteps)
