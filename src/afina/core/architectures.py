"""Which modules a method adapts when the user names none, by `config.model_type` of the base."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_QV, _BERT, _T5 = ["q_proj", "v_proj"], ["query", "value"], ["q", "v"]
_JOINT, _GPT2 = ["query_key_value"], ["c_attn"]

DEFAULT_TARGETS: Mapping[str, list[str] | str] = MappingProxyType(
    {
        **dict.fromkeys(("t5", "mt5", "umt5", "longt5"), _T5),
        **dict.fromkeys(
            ("bart", "mbart", "m2m_100", "marian", "pegasus", "whisper", "opt", "gptj", "gpt_neo", "llama", "llama4",
             "mistral", "mixtral", "stablelm", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "qwen2_moe",
             "qwen3_moe", "olmo", "olmo2", "cohere", "granite", "smollm3", "clip", "siglip", "wav2vec2", "hubert"),
            _QV,
        ),
        **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "layoutlm", "camembert", "vit", "deit"), _BERT),
        **dict.fromkeys(("bloom", "gpt_neox", "chatglm", "RefinedWebModel", "RefinedWeb", "falcon"), _JOINT),
        **dict.fromkeys(("gpt2", "gpt_bigcode"), _GPT2),
        "blip-2": ["q", "v", "q_proj", "v_proj"],
        "deberta-v2": ["query_proj", "value_proj"],
        "deberta": ["in_proj"],
        "distilbert": ["q_lin", "v_lin"],
        "modernbert": ["Wqkv"],
        "mpt": ["Wqkv"],
        "phi3": ["qkv_proj"],
        "btlm": ["c_proj", "c_attn"],
        "codegen": ["qkv_proj"],
        "phi": ["q_proj", "v_proj", "fc1", "fc2"],
        "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
        "nemotron_h": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "rwkv": ["key", "value", "receptance", "output"],
        "rwkv7": ["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"],
    }
)  # fmt: skip

HEAD_NAMES = ("score", "classifier", "qa_outputs", "classification_head", "cls")
"""Names of task heads: trained with the adapter for classification and question answering."""

EMBEDDING_NAMES = ("embed_tokens", "lm_head", "wte", "word_embeddings", "shared", "embed_out")
"""Names of input and output embeddings, the layers that a resized vocabulary changes."""
