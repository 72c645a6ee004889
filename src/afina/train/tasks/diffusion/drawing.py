"""Images of prompts, by a pipeline and its own scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import torch

from ...answers.judge import judging
from ...recipe.sections import DiffusionSection
from .denoiser import Denoiser

if TYPE_CHECKING:
    from PIL.Image import Image

AT_ONCE = 4


def drawn(
    model: Any, prompts: Sequence[str], settings: DiffusionSection, *, size: int, seed: int, at_once: int = AT_ONCE,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Image]:  # fmt: skip
    """An image for each prompt; the noise that it begins from follows from its number and `seed` alone.

    Args:
        model: a `Denoiser`, or a `PeftModel` on one; its mode is as before afterwards, and torch's random state.
        size: pixels of a side.
    """
    base: Denoiser = model.get_base_model() if hasattr(model, "get_base_model") else model
    out: list[Image] = []
    with judging(model), torch.random.fork_rng():
        pipeline = base.pipeline()
        for start in range(0, len(prompts), at_once):
            part = list(prompts[start : start + at_once])
            noise = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
            out += pipeline(part, num_inference_steps=settings.sample_steps, guidance_scale=settings.guidance,
                            height=size, width=size, generator=noise).images  # fmt: skip
            progress(len(out))
    return out


def as_png(image: Image) -> bytes:
    """An image as a PNG file."""
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
