"""Tiny models whose weights depend on the names of their parameters alone, and the adapters that are compared on them.

Imported by the tests and, in an environment that has `adapters` and not afina, by `adapterhub_files.py`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FOLDER = Path(__file__).with_name("adapterhub")
NAME = "tiny"
"""The adapters' name in their files."""

_ENCODER = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 20,
}  # fmt: skip
_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": _ENCODER,
    "xlm-roberta": _ENCODER,
    "electra": {**_ENCODER, "embedding_size": 16},
    "distilbert": {"vocab_size": 40, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24,
                   "max_position_embeddings": 20},
    "gpt2": {"vocab_size": 40, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 20, "bos_token_id": 0,
             "eos_token_id": 1},
    "llama": {**_ENCODER, "num_key_value_heads": 1},
    "mistral": {**_ENCODER, "num_key_value_heads": 1},
    "t5": {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2,
           "num_heads": 2, "decoder_start_token_id": 0},
    "bart": {"vocab_size": 40, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
             "max_position_embeddings": 20},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One adapter: the model's type and class, a configuration class of `adapters`, and its options."""

    model_type: str
    model_class: str
    base: str
    options: dict[str, Any] = field(default_factory=dict)


_HEAD = "BertForSequenceClassification"
CASES: dict[str, Case] = {
    "bert_double_seq_bn": Case("bert", "BertModel", "DoubleSeqBnConfig", {"reduction_factor": 4}),
    "bert_seq_bn": Case("bert", _HEAD, "SeqBnConfig", {"reduction_factor": 4, "non_linearity": "gelu"}),
    "bert_par_bn": Case("bert", "BertModel", "ParBnConfig", {"reduction_factor": 4}),
    "bert_gated": Case("bert", "BertModel", "SeqBnConfig", {"reduction_factor": 5, "use_gating": True}),
    "bert_learned": Case("bert", "BertModel", "DoubleSeqBnConfig",
                         {"reduction_factor": 8, "scaling": "learned", "non_linearity": "tanh", "dropout": 0.1}),
    "bert_post_add": Case("bert", "BertModel", "SeqBnConfig",
                          {"reduction_factor": 8, "residual_before_ln": "post_add", "mh_adapter": True}),
    "bert_residual_after": Case("bert", "BertModel", "SeqBnConfig",
                                {"reduction_factor": 8, "residual_before_ln": False, "non_linearity": "leakyrelu"}),
    "bert_channel": Case("bert", "BertModel", "AdapterPlusConfig",
                         {"reduction_factor": 8, "stochastic_depth": 0.0, "mh_adapter": True}),
    "bert_post_add_no_ln_after": Case("bert", "BertModel", "SeqBnConfig",
                                      {"reduction_factor": 8, "residual_before_ln": "post_add",
                                       "original_ln_after": False}),
    "bert_parallel_attention": Case("bert", _HEAD, "ParBnConfig",
                                    {"reduction_factor": 8, "mh_adapter": True, "output_adapter": False,
                                     "use_gating": True, "scaling": "learned", "non_linearity": "gelu_new"}),
    "roberta_leave_out": Case("roberta", "RobertaModel", "DoubleSeqBnConfig",
                              {"reduction_factor": {"2": 2, "default": 8}, "leave_out": [1],
                               "init_weights": "houlsby"}),
    "roberta_seq_bn": Case("roberta", "RobertaForTokenClassification", "SeqBnConfig",
                           {"reduction_factor": 0.5, "non_linearity": "quick_gelu"}),
    "xlm_roberta_seq_bn": Case("xlm-roberta", "XLMRobertaModel", "SeqBnConfig", {"reduction_factor": 4}),
    "electra_par_bn": Case("electra", "ElectraModel", "ParBnConfig", {"reduction_factor": 4}),
    "distilbert_seq_bn": Case("distilbert", "DistilBertModel", "SeqBnConfig",
                              {"reduction_factor": 4, "mh_adapter": True}),
    "distilbert_par_bn": Case("distilbert", "DistilBertForSequenceClassification", "ParBnConfig",
                              {"reduction_factor": 4, "mh_adapter": True}),
    "distilbert_double_seq_bn": Case("distilbert", "DistilBertModel", "DoubleSeqBnConfig", {"reduction_factor": 4}),
    "gpt2_double_seq_bn": Case("gpt2", "GPT2LMHeadModel", "DoubleSeqBnConfig", {"reduction_factor": 4}),
    "gpt2_seq_bn": Case("gpt2", "GPT2Model", "SeqBnConfig",
                        {"reduction_factor": 4, "mh_adapter": True, "non_linearity": "mish"}),
    "gpt2_par_bn": Case("gpt2", "GPT2LMHeadModel", "ParBnConfig", {"reduction_factor": 4, "mh_adapter": True}),
    "llama_double_seq_bn": Case("llama", "LlamaForCausalLM", "DoubleSeqBnConfig", {"reduction_factor": 4}),
    "llama_seq_bn": Case("llama", "LlamaModel", "SeqBnConfig", {"reduction_factor": 4, "use_gating": True}),
    "llama_residual_after": Case("llama", "LlamaModel", "SeqBnConfig",
                                 {"reduction_factor": 4, "residual_before_ln": False, "mh_adapter": True}),
    "llama_channel": Case("llama", "LlamaForCausalLM", "AdapterPlusConfig",
                          {"reduction_factor": 8, "stochastic_depth": 0.0, "mh_adapter": True}),
    "llama_par_bn": Case("llama", "LlamaForCausalLM", "ParBnConfig",
                         {"reduction_factor": 4, "mh_adapter": True, "scaling": 0.5, "non_linearity": "sigmoid"}),
    "mistral_par_bn": Case("mistral", "MistralForCausalLM", "ParBnConfig", {"reduction_factor": 4}),
    "t5_double_seq_bn": Case("t5", "T5ForConditionalGeneration", "DoubleSeqBnConfig",
                             {"reduction_factor": 4, "cross_adapter": True, "non_linearity": "relu6"}),
    "t5_seq_bn": Case("t5", "T5ForConditionalGeneration", "SeqBnConfig",
                      {"reduction_factor": {"3": 2, "default": 4}, "leave_out": [0]}),
    "t5_par_bn": Case("t5", "T5Model", "ParBnConfig", {"reduction_factor": 4, "mh_adapter": True}),
    "bart_double_seq_bn": Case("bart", "BartModel", "DoubleSeqBnConfig",
                               {"reduction_factor": 4, "cross_adapter": True}),
    "bart_seq_bn": Case("bart", "BartForConditionalGeneration", "SeqBnConfig",
                        {"reduction_factor": 4, "mh_adapter": True, "cross_adapter": True}),
    "bart_par_bn": Case("bart", "BartModel", "ParBnConfig", {"reduction_factor": 4, "mh_adapter": True}),
}  # fmt: skip


def fill(named: Any, salt: str = "") -> None:
    """Random values that depend on each tensor's name and shape alone."""
    with torch.no_grad():
        for name, tensor in named:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{salt}{name}".encode()))
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
            if tensor.dim() == 1 and name.endswith("weight") and "norm" in name.lower():
                tensor += 1


def build(case: Case) -> nn.Module:
    """The base model of a case, in eval mode."""
    import transformers

    config = transformers.AutoConfig.for_model(case.model_type, **_CONFIGS[case.model_type])
    config._attn_implementation = "eager"
    model = getattr(transformers, case.model_class)(config)
    fill(model.named_parameters())
    return model.eval()


def output(model: Any, case: Case) -> Tensor:
    """What the model makes of a fixed batch."""
    ids = torch.randint(3, 40, (2, 6), generator=torch.Generator().manual_seed(5))
    more = {"decoder_input_ids": ids.flip(1)[:, :4]} if case.model_type in ("t5", "bart") else {}
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids), **more)
    return found.logits if "logits" in found else found.last_hidden_state
