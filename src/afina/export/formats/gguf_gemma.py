"""What is particular to Gemma in GGUF: windows, caps on logits, and what llama.cpp takes for granted."""

from __future__ import annotations

from typing import Any

_GELU = "gelu_pytorch_tanh"
_OF_27B = {"gemma2": 46, "gemma3_text": 62}
"""Layers by which llama.cpp knows the largest models, whose attention it scales otherwise."""


def refusal(config: Any, window: int) -> str | None:
    """Why llama.cpp would run another model; None if it runs this one.

    Args:
        window: of every so many layers all but the last see a window only.
    """
    if not config.tie_word_embeddings:
        return "llama.cpp takes Gemma's head for its embedding, and here they are two"
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation != _GELU:
        return f"llama.cpp has Gemma with {_GELU}, not {activation}"
    if getattr(config, "attention_bias", False) or getattr(config, "use_bidirectional_attention", None):
        return "llama.cpp has Gemma without biases on attention, each token seeing those before it"
    scalar, size = getattr(config, "query_pre_attn_scalar", config.head_dim), config.head_dim
    if config.num_hidden_layers == _OF_27B.get(config.model_type):
        size = config.hidden_size // config.num_attention_heads
    if scalar != size:
        return f"llama.cpp scales queries by {size} ** -0.5, the model by {scalar} ** -0.5"
    if window and list(config.layer_types) != [_kind(i, window) for i in range(config.num_hidden_layers)]:
        return f"llama.cpp lets all but every {window}th layer see a window only, the model others"
    return None


def _kind(layer: int, window: int) -> str:
    return "full_attention" if (layer + 1) % window == 0 else "sliding_attention"


def describe(writer: Any, config: Any) -> None:
    """Tell a GGUF writer windows, caps, and the rotary positions in windows."""
    import gguf

    writer.add_sliding_window(config.sliding_window)
    if config.attn_logit_softcapping:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    own = config.rope_parameters.get("sliding_attention")
    if own is None:
        return
    writer.add_rope_freq_base_swa(float(own["rope_theta"]))
    whole = config.rope_parameters["full_attention"]
    if whole.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(whole["factor"]))
