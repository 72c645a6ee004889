"""What one example of a model looks like, by its config: shapes to find the memory of a step with."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

_TOKENS, _SAMPLES, _SIDE = 128, 16_000, 224
"""Of a text, of a second of sound, of an image's side where the config gives no size."""


def example_inputs(model: nn.Module, rows: int = 1) -> dict[str, Tensor] | None:
    """A batch of `rows` examples as arguments of the model's forward; None where it is not known what it takes.

    Args:
        model: of transformers, or the denoising part of a pipeline of diffusers.
    """
    takes = set(inspect.signature(model.forward).parameters)
    config: Any = getattr(model, "config", None)
    if "sample" in takes:
        return _noise(config, takes, rows)
    out: dict[str, Tensor] = {}
    if "pixel_values" in takes:
        size = _of(config, "image_size") or _SIDE
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        out["pixel_values"] = torch.empty(rows, _of(config, "num_channels") or 3, height, width)
    if "input_features" in takes:
        frames = 2 * (_of(config, "max_source_positions") or _SAMPLES // 32)
        out["input_features"] = torch.empty(rows, _of(config, "num_mel_bins") or 80, frames)
    if "input_values" in takes:
        out["input_values"] = torch.empty(rows, _SAMPLES)
    text = {"input_ids", "decoder_input_ids"} & takes if hasattr(config, "get_text_config") else set()
    for name in text:
        longest = _of(config, "max_position_embeddings") or _TOKENS
        out[name] = torch.zeros(rows, min(_TOKENS, longest), dtype=torch.long)
    return out or None


def _noise(config: Any, takes: set[str], rows: int) -> dict[str, Tensor] | None:
    """Of a UNet: a noisy image, its time, and the text that it is drawn by; of an autoencoder an image."""
    names = ("sample_size", "in_channels", "cross_attention_dim")
    side, channels, width = (getattr(config, name, None) for name in names)
    if not isinstance(side, int) or not isinstance(channels, int):
        return None
    out = {"sample": torch.empty(rows, channels, side, side)}
    if "timestep" in takes:
        out["timestep"] = torch.zeros(rows, dtype=torch.long)
    if "encoder_hidden_states" in takes and isinstance(width, int):
        out["encoder_hidden_states"] = torch.empty(rows, 77, width)
    return out


def _of(config: Any, key: str) -> Any:
    """A size in a config, or in that of its part for images, sounds or text."""
    parts = (config, getattr(config, "vision_config", None), getattr(config, "text_config", None))
    return next((v for part in parts if (v := getattr(part, key, None)) is not None), None)


def mean_of_output(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """A scalar that every number of a model's first output has a part in."""
    out: Any = model(**inputs)
    values = out.values() if hasattr(out, "values") else out if isinstance(out, (tuple, list)) else (out,)
    first = next(v for v in values if isinstance(v, Tensor) and v.requires_grad)
    return first.float().mean()
