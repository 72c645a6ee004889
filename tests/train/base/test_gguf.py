from __future__ import annotations

import pytest
import torch

from afina.errors import CheckpointError
from afina.train.base.gguf import converted
from afina.train.report.events import Reporter

from .. import tiny


def test_what_is_not_gguf_is_refused(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        converted(tmp_path / "m.gguf", Reporter())


def write_gguf(folder, model_folder):
    """The tiny Llama as GGUF, all weights float32, with the names and permuted rotary rows of llama.cpp."""
    import gguf
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(model_folder)
    c, path = model.config, folder / "tiny.gguf"
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(c.max_position_embeddings)
    out.add_embedding_length(c.hidden_size)
    out.add_block_count(c.num_hidden_layers)
    out.add_feed_forward_length(c.intermediate_size)
    out.add_head_count(c.num_attention_heads)
    out.add_head_count_kv(c.num_key_value_heads)
    out.add_layer_norm_rms_eps(c.rms_norm_eps)
    out.add_rope_freq_base(10000.0)
    out.add_vocab_size(c.vocab_size)
    words = tiny.tokenizer(chat=False).get_vocab()
    out.add_tokenizer_model("gpt2")
    out.add_token_list(sorted(words, key=words.get))
    out.add_token_types([3] * 3 + [1] * (len(words) - 3))
    out.add_token_scores([0.0] * len(words))
    out.add_bos_token_id(2)
    out.add_eos_token_id(1)
    out.add_pad_token_id(0)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        if name.startswith("model.layers."):
            _, _, layer, inner = name.removesuffix(".weight").split(".", 3)
            heads = {"self_attn.q_proj": c.num_attention_heads, "self_attn.k_proj": c.num_key_value_heads}.get(inner)
            if heads:
                value = value.reshape(heads, 2, -1, c.hidden_size).swapaxes(1, 2).reshape(value.shape)
            name = f"blk.{layer}.{names[inner]}.weight"
        else:
            name = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
        out.add_tensor(name, value.numpy().copy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def test_converted_model_is_plain_and_has_the_same_weights(tmp_path, model_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = write_gguf(tmp_path, model_folder)
    folder = converted(path, Reporter())
    assert converted(path, Reporter()) == folder
    model, original = (AutoModelForCausalLM.from_pretrained(f) for f in (folder, model_folder))
    assert not hasattr(model.config, "quantization_config")
    assert not getattr(model, "is_quantized", False)
    expected = original.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    model.save_pretrained(tmp_path / "again")  # a model that counts as quantised refuses
    assert AutoTokenizer.from_pretrained(folder)("ab")["input_ids"]
