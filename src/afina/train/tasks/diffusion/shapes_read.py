"""What reads rows for the plan of a pipeline's run: by shapes alone, so that no weights are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...base.pipelines.pipeline_folder import sketched_part
from .captions import PipelineReader
from .image_captions import PRIOR

if TYPE_CHECKING:
    from PIL.Image import Image


class ShapeReader(PipelineReader):
    """Gives latents, and what text encoders say, of the right shape and dtype, all zero and in no memory of their own.
    Tokens, where text encoders train, are those of the captions."""

    def part(self, name: str) -> Any:
        """A frozen part by its config."""
        if name not in self.frozen:
            self.frozen[name] = sketched_part(self.location, name).eval().requires_grad_(False)
        return self.frozen[name]

    @property
    def mapped(self) -> bool:
        """Whether the VAE's file has the numbers that it computes with."""
        from safetensors import safe_open

        for file in Path(self.location, "vae").glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                return all(opened.get_slice(name).get_dtype() == "F32" for name in opened.keys())  # noqa: SIM118
        return False

    def captions(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        """Of each caption what a batch has of it; those of equal captions are the same tensors."""
        if self.section.train_text_encoder:
            return super().captions(captions)
        new = [caption for caption in dict.fromkeys(captions) if caption not in self.known]
        shapes = self._shapes() if new else {}
        self.known |= {caption: {name: _zeros(size) for name, size in shapes.items()} for caption in new}
        return [self.known[caption] for caption in captions]

    def _shapes(self) -> dict[str, Sequence[int]]:
        if not self.known:
            with torch.device("meta"), torch.no_grad():
                tokens = {k: v.to("meta") for k, v in self.family.tokens(self.tokenizers, [""]).items()}
                found = self.family.words({name: self.part(name) for name in self.family.encoders}, tokens)
            self.release()
            return {name: values.shape[1:] for name, values in found.items()}
        return {name: values.shape for name, values in next(iter(self.known.values())).items()}

    def latents(self, images: Sequence[Image | None]) -> list[dict[str, Tensor]]:
        """Of each image the `means` and `deviations` of its latents, (C, H, W), and `frames`, (6,)."""
        shapes = {"means": self.latent_shape, "deviations": self.latent_shape, "frames": (6,)}
        return [{name: _zeros(size) for name, size in shapes.items()} for _ in images]


def kept_bytes(items: Iterable[Mapping[str, Any]]) -> int:
    """Bytes of what is kept of rows: latents, and what is said of each caption once."""
    found = dict[int, Tensor]()
    for item in items:
        for one in (item, *([item[PRIOR]] if PRIOR in item else ())):
            found |= {id(values): values for part in ("latents", "words") for values in one[part].values()}
    return sum(values.numel() * values.element_size() for values in found.values())


def _zeros(shape: Sequence[int]) -> Tensor:
    return torch.zeros(1).expand(tuple(shape))
