"""What models of a `config.model_type` call their parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

_QV, _BERT, _T5 = ["q_proj", "v_proj"], ["query", "value"], ["q", "v"]
_JOINT, _GPT2 = ["query_key_value"], ["c_attn"]
_SEEING, _POINTWISE = [*_BERT, *_QV], ["pwconv1", "pwconv2"]
"""Transformers renamed the layers of ViT's family; `targets.settle` keeps the names that a model has."""

DEFAULT_TARGETS: Mapping[str, list[str] | str] = MappingProxyType(
    {
        **dict.fromkeys(("t5", "mt5", "umt5", "longt5"), _T5),
        **dict.fromkeys(
            ("bart", "mbart", "m2m_100", "marian", "pegasus", "whisper", "opt", "gptj", "gpt_neo", "llama", "llama4",
             "mistral", "mixtral", "stablelm", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "qwen2_moe",
             "qwen3_moe", "olmo", "olmo2", "cohere", "granite", "smollm3", "clip", "siglip", "wav2vec2", "hubert",
             "dinov3_vit"),
            _QV,
        ),
        **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "layoutlm", "camembert", "mobilevit", "swinv2"),
                        _BERT),
        **dict.fromkeys(("vit", "deit", "beit", "dinov2", "swin", "vit_mae", "segformer",
                         "audio-spectrogram-transformer"), _SEEING),
        **dict.fromkeys(("convnext", "convnextv2"), _POINTWISE),
        "resnet": ["convolution"],
        "regnet": r"(.*\.)?(shortcut|layer\.[023])\.convolution",  # of convolutions those that mix channels
        "efficientnet": ["expand_conv", "project_conv"],
        "poolformer": ["conv1", "conv2"],
        "mobilenet_v1": r"(.*\.)?layer\.\d*[13579]\.convolution",
        "mobilenet_v2": r"(.*\.)?(expand_1x1|reduce_1x1|conv_1x1)\.convolution",
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
        # Attention in a pipeline's denoiser, and in its text encoders where they train.
        "diffusion": ["to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj"],
        "rwkv": ["key", "value", "receptance", "output"],
        "rwkv7": ["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"],
    }
)  # fmt: skip
"""Which modules a method adapts when the user names none."""

HEAD_NAMES = ("score", "classifier", "qa_outputs", "classification_head", "cls")
"""Names of task heads: trained with the adapter for classification and question answering."""

EMBEDDING_NAMES = ("embed_tokens", "lm_head", "wte", "word_embeddings", "shared", "embed_out")
"""Names of input and output embeddings, the layers that a resized vocabulary changes."""


@dataclass(frozen=True)
class Sublayer:
    """A part of a block that adds its output to the residual stream; paths are relative to the block.

    Attributes:
        kind: which part.
        output: the layer whose output is added to the stream, after a dropout in most models.
        stream: a layer whose input is the stream before the addition.
        norm: the normalisation of the sum, in models that normalise after the addition; else empty.
        hub: AdapterHub's name for this place.
    """

    kind: Literal["attention", "cross_attention", "feed_forward"]
    output: str
    stream: str
    norm: str
    hub: str


_BERT_PARTS = (
    Sublayer("attention", "attention.output.dense", "attention.self.query", "attention.output.LayerNorm",
             "attention.output"),
    Sublayer("feed_forward", "output.dense", "intermediate.dense", "output.LayerNorm", "output"),
)  # fmt: skip
_GPT2_PARTS = (
    Sublayer("attention", "attn.c_proj", "ln_1", "", "attention_adapters"),
    Sublayer("feed_forward", "mlp.c_proj", "ln_2", "", "output_adapters"),
)
_LLAMA_PARTS = (
    Sublayer("attention", "self_attn.o_proj", "input_layernorm", "", "attention_adapters"),
    Sublayer("feed_forward", "mlp.down_proj", "post_attention_layernorm", "", "output_adapters"),
)
_T5_PARTS = (
    Sublayer("attention", "layer.0.SelfAttention.o", "layer.0.layer_norm", "", "layer.0"),
    Sublayer("cross_attention", "layer.1.EncDecAttention.o", "layer.1.layer_norm", "", "layer.1"),
    Sublayer("feed_forward", "layer.1.DenseReluDense.wo", "layer.1.layer_norm", "", "layer.1"),
    Sublayer("feed_forward", "layer.2.DenseReluDense.wo", "layer.2.layer_norm", "", "layer.2"),
)
_DISTILBERT_PARTS = (
    Sublayer("attention", "attention.out_lin", "attention.q_lin", "sa_layer_norm", "attention_adapters"),
    Sublayer("feed_forward", "ffn.lin2", "ffn.lin1", "output_layer_norm", "output_adapters"),
)
_BART_PARTS = (
    Sublayer("attention", "self_attn.out_proj", "self_attn.q_proj", "self_attn_layer_norm", "attention_adapters"),
    Sublayer("cross_attention", "encoder_attn.out_proj", "encoder_attn.q_proj", "encoder_attn_layer_norm",
             "cross_attention_adapters"),
    Sublayer("feed_forward", "fc2", "fc1", "final_layer_norm", "output_adapters"),
)  # fmt: skip

SUBLAYERS: Mapping[str, tuple[Sublayer, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), _BERT_PARTS),
        **dict.fromkeys(("llama", "mistral"), _LLAMA_PARTS),
        **dict.fromkeys(("t5", "mt5"), _T5_PARTS),
        "gpt2": _GPT2_PARTS,
        "distilbert": _DISTILBERT_PARTS,
        "bart": _BART_PARTS,
    }
)
"""`config.model_type` -> the parts of its blocks."""
