"""Names of layers of diffusion models in LoRA files: kohya's (flattened), the original UNet's, diffusers' own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from ..errors import ConfigError

PREFIXES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "unet": ("lora_unet",),
    "transformer": ("lora_transformer",),
    "text_encoder": ("lora_te", "lora_te1"),
    "text_encoder_2": ("lora_te2",),
    "text_encoder_3": ("lora_te3",),
})  # fmt: skip
"""Component of a pipeline -> how kohya's names of its layers begin."""
_RESNET = MappingProxyType({"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
                            "conv_shortcut": "skip_connection"})  # fmt: skip
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_FIXED = MappingProxyType({
    "conv_in": "input_blocks.0.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
})  # fmt: skip
_CLIP = "text_model."
"""Below this CLIP's text model had its layers in all releases of transformers before 5, and files still have them."""


def original_name(path: str, attended: frozenset[int] = frozenset(), layers: int = 2) -> str:
    """A UNet layer's path in the implementation that its weights were published for.

    Args:
        path: in diffusers.
        attended: which of the blocks on the way up have attention, behind which their upsampler stands.
        layers: ResNets of a block on the way down.
    """
    if path in _FIXED:
        return _FIXED[path]
    if found := _MIDDLE.fullmatch(path):
        kind, number, rest = found.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}.{_inner(kind, rest)}"
    found = _BLOCK.fullmatch(path)
    if found is None:
        return path
    way, block, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks.{(layers + 1) * (block + 1)}.0.{'op' if rest == 'conv' else rest}"
    if kind == "upsamplers":
        return f"output_blocks.{(layers + 1) * block + layers}.{2 if block in attended else 1}.{rest}"
    place = (layers + 1) * block + number + (way == "down")
    return f"{'input' if way == 'down' else 'output'}_blocks.{place}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    return _RESNET.get(rest, rest) if kind == "resnets" else rest


def clip_name(path: str) -> str:
    """A text encoder's path as files have it."""
    return _CLIP + path if path.startswith("encoder.layers.") else path


def attended(paths: Iterable[str]) -> frozenset[int]:
    """Which blocks on the way up have attention."""
    return frozenset(int(m[1]) for p in paths if (m := re.match(r"up_blocks\.(\d+)\.attentions\.", p)))


def table(component: str, paths: Iterable[str]) -> dict[str, str]:
    """Kohya's name -> the layer's path, in all spellings that files have.

    Raises:
        ConfigError: a component of this name is not known.
    """
    if component not in PREFIXES:
        raise ConfigError("no such part of a pipeline", where=component, expected=", ".join(PREFIXES))
    listed = list(paths)
    with_attention = attended(listed)
    out: dict[str, str] = {}
    for path in listed:
        other = original_name(path, with_attention) if component == "unet" else clip_name(path)
        names = {path, other, path.removeprefix(_CLIP)}
        for prefix in PREFIXES[component]:
            out |= {f"{prefix}_{name.replace('.', '_')}": path for name in names}
    return out
