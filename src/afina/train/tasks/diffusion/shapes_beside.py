"""What a pipeline's run does beside its steps, on tensors without data: rows are read, images are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ....plan.trace import Trace
from ...base.pipelines.pipeline_folder import sketched_part
from ...recipe.sections import Recipe
from . import drawing, dreambooth
from .captions import AT_ONCE
from .denoiser import Denoiser, dtype_of
from .shapes_read import ShapeReader


@dataclass(frozen=True)
class Beside:
    """Of a run.

    Attributes:
        reader: of another one's shapes; it has no parts yet.
        images: rows in all.
    """

    reader: ShapeReader
    recipe: Recipe
    images: int

    @torch.no_grad()
    def read(self, trace: Trace) -> None:
        """As many images, and captions, as are read in one pass; and images of a class that the base makes."""
        reader, rows = self.reader, min(AT_ONCE, self.images)
        with trace.of("weights"):
            reader.part("vae")
        with trace.of("temporary"):
            reader.encoded(torch.empty(rows, 3, reader.size, reader.size))
        if not self.recipe.model.train_text_encoder:
            self._said(trace, {}, rows)
        if self.recipe.data.class_prompt is not None and self.recipe.data.class_images is None:
            with trace.of("weights"):
                base = Denoiser.sketched(reader.location, dtype_of(self.recipe.model), train_text_encoder=False)
            self._draw(trace, base, min(dreambooth.AT_ONCE, self.recipe.data.class_count))

    @torch.no_grad()
    def draw(self, trace: Trace, base: Denoiser) -> None:
        """As many images as are drawn at once along the way."""
        self._draw(trace, base, min(drawing.AT_ONCE, len(self.recipe.diffusion.samples)))

    def _draw(self, trace: Trace, base: Denoiser, rows: int) -> None:
        """One step of the denoiser, with no caption beside each where guidance compares with it, and the images."""
        family, reader = base.family, self.reader
        with trace.of("weights"):
            names = ["vae", *(name for name in family.encoders if name not in base.parts)]
            loaded = {name: nn.Module.to(sketched_part(reader.location, name), base.dtype) for name in names}
        words = self._said(trace, {**base.parts, **loaded}, rows)
        with trace.of("temporary"):
            times = 2 if family.compares and self.recipe.diffusion.guidance > 1 else 1
            given = {name: torch.cat([one] * times) for name, one in words.items()}
            given["frames"] = torch.empty(rows * times, 6)
            latents = torch.empty(rows, *reader.latent_shape, dtype=base.dtype)
            told = base.noising.told(torch.ones(rows * times, dtype=torch.long))
            family.denoised(base.parts[family.denoiser], torch.cat([latents] * times), told, given)
            loaded["vae"].decode(latents)

    def _said(self, trace: Trace, parts: dict[str, Any], rows: int) -> dict[str, Tensor]:
        """Of so many captions, by the given text encoders or the reader's own."""
        encoders = self.reader.family.encoders
        with trace.of("weights"):
            own = {name: parts[name] if name in parts else self.reader.part(name) for name in encoders}
        with trace.of("temporary"):
            lengths = {name: self.reader.tokenizers[of].model_max_length for name, of in encoders.items()}
            tokens = {name: torch.ones(rows, n, dtype=torch.long) for name, n in lengths.items()}
            return self.reader.family.words(own, tokens)
