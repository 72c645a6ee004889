"""Adapters per row of a batch, on real architectures and where it cannot be."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from afina import (
    BottleneckConfig,
    HRAConfig,
    IA3Config,
    LoraConfig,
    get_peft_model,
)
from afina.errors import ConfigError, MergeError, NameTakenError

NAMES = ["lora", "__base__", "ia3", "bottleneck", "hra", "lora"]
IDS = torch.randint(3, 60, (6, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, :3] = MASK[3, :2] = 0


def nudge(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=2, bos_token_id=1,
    ))  # fmt: skip


@pytest.fixture
def model():
    """LLaMA with adapters of four methods."""
    model = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", r=4), "lora")
    nudge(model, 1)
    others = {
        "ia3": IA3Config(task_type="CAUSAL_LM"), "bottleneck": BottleneckConfig(task_type="CAUSAL_LM"),
        "hra": HRAConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"]),
    }  # fmt: skip
    for seed, (name, config) in enumerate(others.items()):
        model.add_adapter(name, config)
        model.set_adapter(name)
        nudge(model, seed + 2)
    return model.eval()


def alone(model, name, run):
    if name == "__base__":
        with model.disable_adapter():
            return run()
    model.set_adapter(name)
    return run()


@torch.no_grad()
def test_four_methods_and_the_base_share_a_batch(model):
    mixed = model(IDS, attention_mask=MASK, adapter_names=NAMES).logits
    for i, name in enumerate(NAMES):
        row = slice(i, i + 1)
        out = alone(model, name, lambda row=row: model(IDS[row], attention_mask=MASK[row]).logits)
        seen = MASK[i].bool()
        assert torch.allclose(mixed[i][seen], out[0][seen], atol=1e-5), name


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_generate_equals_generating_row_by_row(model, options):
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **options}
    mixed = model.generate(input_ids=IDS, attention_mask=MASK, adapter_names=NAMES, **settings)
    copies = options.get("num_return_sequences", 1)
    for i, name in enumerate(NAMES):
        row = slice(i, i + 1)
        out = alone(
            model, name, lambda row=row: model.generate(input_ids=IDS[row], attention_mask=MASK[row], **settings)
        )
        own = mixed[i * copies : (i + 1) * copies, : out.shape[1]]
        assert torch.equal(own, out), name


def test_the_next_call_is_an_ordinary_one(model):
    model.set_adapter("lora")
    with torch.no_grad():
        before = model(IDS).logits
        model(IDS, adapter_names=NAMES)
        assert torch.equal(model(IDS).logits, before)


def test_gradient_checkpointing_gives_the_same_gradients(model):
    model.set_requires_grad(["lora", "ia3", "bottleneck", "hra"])

    def gradients():
        model.zero_grad()
        model(IDS, attention_mask=MASK, labels=IDS, adapter_names=NAMES).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    model.train()
    plain = gradients()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    again = gradients()
    assert plain.keys() == again.keys()
    assert len({n.split("adapters.")[1].split(".")[0] for n in plain}) == 4
    assert all(torch.allclose(plain[n], again[n], atol=1e-6) for n in plain)


@torch.no_grad()
def test_every_row_has_its_own_trained_head():
    torch.manual_seed(0)
    base = BertForSequenceClassification(BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    ))  # fmt: skip
    config = LoraConfig(task_type="SEQ_CLS", bias="lora_only", target_modules=["query", "value"])
    model = get_peft_model(base, config, "a")
    nudge(model, 1)
    model.add_adapter("b", LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    model.set_adapter("b")
    nudge(model, 2)
    model.eval()
    names = ["a", "b", "__base__", "b", "a", "a"]
    mixed = model(IDS, adapter_names=names).logits
    for i, name in enumerate(names):
        out = alone(model, name, lambda i=i: model(IDS[i : i + 1]).logits)
        assert torch.allclose(mixed[i], out[0], atol=1e-5), name


def test_what_cannot_be_is_refused(model):
    with pytest.raises(NameTakenError, match="no adapter of this name"):
        model(IDS, adapter_names=["lora"] * 5 + ["lara"])
    with pytest.raises(ConfigError, match="as many names as rows"):
        model(IDS, adapter_names=["lora"] * 5)
    with pytest.raises(ConfigError, match="one adapter name for every row"):
        model(IDS, adapter_names="lora")
    model.set_adapter("lora")
    model.merge_adapter()
    with pytest.raises(MergeError, match="while an adapter is merged"):
        model(IDS, adapter_names=NAMES)


def test_input_that_does_not_divide_into_rows_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(x[1:])

    model = get_peft_model(Odd(), LoraConfig(target_modules=["inner"]), "a")
    model.add_adapter("b", LoraConfig(target_modules=["inner"]))
    with pytest.raises(ConfigError, match="does not divide into the batch's rows"):
        model(torch.randn(4, 4), adapter_names=["a", "b", "a", "b"])
