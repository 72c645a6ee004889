"""The heads and widths of each layer's keys, which differ between the layers of some models (Gemma 4)."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...errors import ConfigError


def text_config(model: nn.Module) -> Any:
    """The config of a model's language model."""
    own: Any = getattr(model, "config", None)
    return own.get_text_config() if hasattr(own, "get_text_config") else own


def key_shapes(text: Any, layers: int, width: int, heads: int) -> list[tuple[int, int] | None]:
    """(heads, width of one) of every layer's keys; None for layers that use those of an earlier one.

    Args:
        text: the config of the model (of its language model).
        layers: how many there are.
        width: of a token, where the config does not give the width of a head.
        heads: of the queries, where it does not give those of the keys.
    """
    # Configs whose layers differ refuse to say what holds for all.
    each = text.per_layer_config if getattr(text, "is_heterogeneous", False) else [text] * layers
    alone = layers - (getattr(text, "num_kv_shared_layers", None) or 0)
    return [_shape(each[i], width, heads) if i < alone else None for i in range(layers)]


def _shape(layer: Any, width: int, heads: int) -> tuple[int, int]:
    one = getattr(layer, "head_dim", None) or getattr(layer, "d_kv", None) or width // heads
    return getattr(layer, "num_key_value_heads", None) or heads, one


def widest(shapes: list[tuple[int, int] | None]) -> tuple[int, int]:
    """The shape that a prefix has, which is cut to each layer's own: most heads and widest head."""
    found = [s for s in shapes if s is not None]
    return max(heads for heads, _ in found), max(width for _, width in found)


def layer_keys(model: nn.Module, layers: int, token_dim: int, heads: int) -> dict[int, tuple[int, int]]:
    """Layer -> (heads, width) of the part of a prefix that it takes, of all that have keys of their own.

    Raises:
        ConfigError: the prefix is too small for one of them. The reference leaves such layers out; but masks and
            positions are the same for all layers, so that the others would count them wrongly.
    """
    text, width = text_config(model), token_dim // heads
    if not getattr(text, "is_heterogeneous", False) and not getattr(text, "num_kv_shared_layers", 0):
        return dict.fromkeys(range(layers), (heads, width))
    found = {i: s for i, s in enumerate(key_shapes(text, layers, token_dim, heads)) if s is not None}
    for layer, (own_heads, own_width) in found.items():
        if own_heads > heads or own_width > width:
            raise ConfigError(
                "the prefix does not fit all layers", where=f"token_dim at layer {layer}",
                got=f"{heads} heads of {width}", expected=f"{own_heads} of {own_width} or more",
            )  # fmt: skip
    return found
