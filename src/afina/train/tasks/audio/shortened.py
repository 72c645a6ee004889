"""Whisper for short sounds: it takes half a minute at once, and most of that can be silence."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...base.sound_processor import SoundProcessor


def shorten(model: Any, processor: SoundProcessor) -> None:
    """Let a Whisper's encoder take as many seconds as its processor gives.

    Its positions are those of the beginning; they are fixed sinusoids, so none is missing.
    """
    if not processor.fixed:
        return
    encoder = model.get_encoder() if hasattr(model, "get_encoder") else model.encoder
    extractor = processor.extractor
    places = extractor.nb_max_frames // (encoder.conv1.stride[0] * encoder.conv2.stride[0])
    if places == encoder.max_source_positions:
        return
    short = nn.Embedding(places, encoder.embed_positions.embedding_dim, device="meta")
    short.weight = nn.Parameter(encoder.embed_positions.weight[:places].detach().clone(), requires_grad=False)
    encoder.embed_positions = short
    encoder.max_source_positions = model.config.max_source_positions = encoder.config.max_source_positions = places
