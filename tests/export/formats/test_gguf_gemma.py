"""Gemma in GGUF: what llama.cpp takes for granted is held against the model."""

from __future__ import annotations

from typing import Any

import pytest

from afina.export.formats import gguf_names


def config(kind: str, **change: Any) -> Any:
    import transformers

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
             "num_hidden_layers": 6}  # fmt: skip
    scale = {} if kind == "Gemma" else {"query_pre_attn_scalar": 32}
    return getattr(transformers, f"{kind}Config")(**{**sizes, **scale, **change})


@pytest.mark.parametrize("kind", ["Gemma", "Gemma2", "Gemma3Text"])
def test_models_as_they_are_published_are_written(kind: str) -> None:
    assert gguf_names.refusal(config(kind)) is None
    linear = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
    whole = {"full_attention": linear, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    found = gguf_names.refusal(config(kind, rope_parameters=whole if kind == "Gemma3Text" else linear))
    assert found is None if kind == "Gemma3Text" else "of type linear" in str(found)


@pytest.mark.parametrize(("kind", "change", "says"), [
    ("Gemma", {"tie_word_embeddings": False}, "here they are two"),
    ("Gemma", {"hidden_act": "silu"}, "not silu"),
    ("Gemma2", {"attention_bias": True}, "without biases"),
    ("Gemma2", {"query_pre_attn_scalar": 64}, "the model by 64 ** -0.5"),
    ("Gemma2", {"num_hidden_layers": 46}, "scales queries by 8 ** -0.5"),
    ("Gemma3Text", {"layer_types": ["full_attention"] * 6}, "every 6th layer"),
], ids=str)  # fmt: skip
def test_models_that_llama_cpp_would_run_otherwise_are_refused(kind: str, change: dict[str, Any], says: str) -> None:
    assert says in str(gguf_names.refusal(config(kind, **change)))
