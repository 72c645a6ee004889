"""Run with afina standing in: every method's file through transformers' own `load_adapter`, one JSON line each."""

import json
import sys
import tempfile
import warnings

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import afina
from afina.core.config import methods
from afina.core.hosts.calls import entered
from afina.core.hosts.tuner import adapter_names, scope_of
from afina.core.prompts.encoder import PromptLearningConfig

warnings.simplefilter("ignore")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1,
         "attention_bias": True}  # fmt: skip
IDS = torch.arange(3, 15).view(2, 6)
QV = {"target_modules": ["q_proj", "v_proj"]}
OPTIONS = {
    "ADAPTION_PROMPT": {"adapter_len": 3, "adapter_layers": 1},
    "SHADOW": {"shadow_dropout": 0.0},
    "TRAINABLE_TOKENS": {"token_indices": [3, 5]},
    **{n: {} for n in ("BITFIT", "BOTTLENECK", "LAST_LAYERS", "LN_TUNING", "REFT")},
    "ADALORA": {**QV, "total_step": 100},
    "C3A": {**QV, "block_size": 8},
    "FOURIERFT": {**QV, "n_frequency": 50},
    "PSOFT": {**QV, "r": 4},
    "ROAD": {**QV, "group_size": 8},
    "SHIRA": {**QV, "r": 2},
    "VBLORA": {**QV, "vector_length": 4, "num_vectors": 8},
    "WAVEFT": {**QV, "n_frequency": 50},
}
LORAS = {
    **{f"starts as {s}": {**QV, "init_lora_weights": s} for s in ("pissa", "olora", "mica", "orthogonal")},
    "dora": {**QV, "use_dora": True},
    "biases": {**QV, "bias": "all"},
    "head": {**QV, "modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "tokens": {**QV, "trainable_token_indices": [3, 5]},
    "parameter": {"target_modules": [], "target_parameters": ["layers.0.mlp.up_proj.weight"]},
}
ELSEWHERE = {"FULL": "no adapter", "XLORA": "it needs other adapters beside it"}


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def outputs(model):
    # What the wrapped model's forward takes out of its arguments, and transformers' own does not.
    inputs = {name: {"task_ids": torch.zeros(2, dtype=torch.long)} for name in adapter_names(model)}
    with torch.no_grad(), entered(scope_of(model), inputs=inputs):
        return model(IDS).logits


def one(name, config):
    model = afina.get_peft_model(base(), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        whole = afina.PeftModel.from_pretrained(base(), folder)
        mixed = base()
        mixed.load_adapter(folder)
        held = afina.load_peft_weights(folder)
        direct = base()
        direct.load_adapter(peft_config=afina.PeftConfig.from_pretrained(folder), adapter_state_dict=held)
    expected = outputs(whole.get_base_model())
    return {
        "name": name,
        "file": (outputs(mixed) - expected).abs().max().item(),
        "state": (outputs(direct) - expected).abs().max().item(),
        "effect": (expected - outputs(base())).abs().max().item(),
        "frozen": not any(p.requires_grad for p in mixed.parameters()),
        "left": "_load_pretrained_model" in vars(mixed),
    }


for name, method in methods().items():
    if name not in ELSEWHERE and not issubclass(method.config, PromptLearningConfig):
        print(json.dumps(one(name, method.config(task_type="CAUSAL_LM", **OPTIONS.get(name, QV)))), flush=True)
for name, options in LORAS.items():
    print(json.dumps(one(name, afina.LoraConfig(task_type="CAUSAL_LM", **options))), flush=True)
sys.exit(0)
