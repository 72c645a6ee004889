from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)  # fmt: skip

from afina import LoraConfig, get_peft_model
from afina.errors import AfinaWarning
from afina.kernels import compiled
from afina.kernels.cpu import attention, products
from afina.kernels.cpu.attention import short_attention
from afina.kernels.speed import speed_up
from afina.methods.selective.last_layers import LastLayersConfig

from .conftest import switch_off

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "pad_token_id": 0}  # fmt: skip
IDS = torch.randint(3, 60, (3, 12), generator=torch.Generator().manual_seed(0))
LABELS = torch.where(torch.arange(12) < 7, -100, IDS)
MASK = torch.ones_like(IDS)
MASK[0, :4] = 0
COMPILED = pytest.mark.whole("compiling takes long; padded rows without checkpointing are compiled")


def llama(dtype=torch.float32):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).to(dtype)


def gemma(dtype=torch.float32):
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=5.0, sliding_window=4)).to(dtype)


def adapted(base):
    torch.manual_seed(1)
    return get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    )


def step(model, **inputs):
    model.train()
    model.zero_grad()
    out = model(input_ids=IDS, labels=LABELS, **inputs)
    out.loss.backward()
    return out, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("keep_logits", [True, False])
@pytest.mark.parametrize("make", [llama, gemma])
@pytest.mark.parametrize("inputs", [{}, {"attention_mask": MASK}, {"num_items_in_batch": torch.tensor(11)}], ids=str)
def test_a_fast_step_is_the_plain_step(make, keep_logits, inputs, either):
    plain, fast = adapted(make()), adapted(make())
    said = speed_up(fast, keep_logits=keep_logits)
    assert any("supervised positions only" in s for s in said)
    (a, grads), (b, fast_grads) = step(plain, **inputs), step(fast, **inputs)
    assert torch.allclose(a.loss, b.loss, rtol=1e-6)
    assert (b.logits is None) == (not keep_logits)
    assert grads.keys() == fast_grads.keys()
    assert all(torch.allclose(grads[n], fast_grads[n], rtol=1e-4, atol=1e-6) for n in grads)


def test_evaluation_and_generation_have_their_logits():
    plain, fast = adapted(llama()).eval(), adapted(llama())
    speed_up(fast, keep_logits=False)
    fast.eval()
    assert torch.allclose(fast(IDS, labels=LABELS).logits, plain(IDS).logits, atol=1e-6)
    assert torch.equal(fast.generate(input_ids=IDS, max_new_tokens=5), plain.generate(input_ids=IDS, max_new_tokens=5))


def test_bfloat16_steps_differ_by_rounding_only(monkeypatch, either):
    calls = []
    own = attention.short_attention
    monkeypatch.setattr(attention, "short_attention", lambda *a: calls.append(1) or own(*a))
    exact, plain, fast = adapted(llama()), adapted(llama(torch.bfloat16)), adapted(llama(torch.bfloat16))
    said = speed_up(fast, keep_logits=False)
    assert "batched products" in said[0]
    assert any(s.startswith("native kernels: on, in ") for s in said) == either
    for inputs in ({}, {"attention_mask": MASK}):
        _, true = step(exact, **inputs)
        (a, slow), (b, quick) = step(plain, **inputs), step(fast, **inputs)
        assert abs(float(a.loss - b.loss)) < 0.02
        worst = [max(float((g[n] - true[n]).norm() / true[n].norm()) for n in true) for g in (slow, quick)]
        assert worst[1] < 2 * worst[0] + 0.01
    assert len(calls) == 4


def test_copies_and_saved_models_are_the_plain_class(tmp_path):
    fast = llama()
    speed_up(fast.requires_grad_(False), keep_logits=False)
    again = copy.deepcopy(fast)
    assert torch.equal(again(IDS).logits, fast(IDS).logits)
    fast.save_pretrained(tmp_path)
    assert LlamaForCausalLM.from_pretrained(tmp_path).config.architectures == ["LlamaForCausalLM"]


def test_what_does_not_fit_is_said_and_left():
    torch.manual_seed(0)
    encoder = BertModel(
        BertConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    )
    assert "no causal language model" in " ".join(speed_up(encoder))
    trained = get_peft_model(
        llama(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])
    )
    said = " ".join(speed_up(trained, keep_logits=False))
    assert "off, because the vocabulary projection is adapted, trained or cut" in said

    class Doubling(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.loss = None if out.loss is None else 2 * out.loss
            return out

    torch.manual_seed(0)
    odd = Doubling(LlamaConfig(**SIZES)).requires_grad_(False)
    assert "would differ" in " ".join(speed_up(odd, keep_logits=False))


def test_softcapped_logits_that_are_wanted_are_the_models_own():
    plain, fast = adapted(gemma()), adapted(gemma())
    assert "off, because the logits are wanted and soft-capped" in " ".join(speed_up(fast))
    assert torch.equal(step(fast)[0].logits, step(plain)[0].logits)


def test_logits_that_are_kept_can_be_differentiated_too():
    plain, fast = adapted(llama()), adapted(llama())
    speed_up(fast)
    grads = []
    for model in (plain, fast):
        out = model.train()(input_ids=IDS, labels=LABELS)
        (out.loss + out.logits.square().mean()).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.allclose(grads[0][n], g, rtol=1e-4, atol=1e-6) for n, g in grads[1].items())


def test_a_training_step_fills_no_cache_unless_it_is_asked_for():
    fast = adapted(llama()).train()
    speed_up(fast)
    assert fast(input_ids=IDS, labels=LABELS).past_key_values is None
    assert fast(input_ids=IDS, labels=LABELS, use_cache=True).past_key_values is not None
    assert len(fast(input_ids=IDS, labels=LABELS, return_dict=False)) == 2


def test_layers_are_compiled_only_where_the_steps_pay_for_it(monkeypatch):
    switch_off(monkeypatch)
    said = speed_up(adapted(llama()), steps=1000)[-1]
    assert "they pay from about" in said
    assert "number of steps is not known" in speed_up(adapted(llama()))[-1]


def test_a_layer_that_cannot_be_compiled_runs_as_it_is_and_says_so(monkeypatch):
    from torch._dynamo.exc import Unsupported

    def refuse(*args, **kwargs):
        raise Unsupported("no such operation")

    switch_off(monkeypatch)
    plain, fast = adapted(llama()), adapted(llama())
    monkeypatch.setattr(compiled, "_fault", lambda layer: None)
    monkeypatch.setattr(compiled, "_compiled", lambda kind: refuse)
    speed_up(fast, keep_logits=False, steps=10**12)
    with pytest.warns(AfinaWarning, match="cannot be compiled"):
        first = step(fast)
    assert torch.allclose(first[0].loss, step(plain)[0].loss, rtol=1e-6)


@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_compiled_where_native_kernels_serve(dtype):
    assert "native kernels leave them next to nothing" in speed_up(adapted(llama(dtype)), steps=10**12)[-1]


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=COMPILED)])
@pytest.mark.parametrize(
    "inputs", [{"attention_mask": MASK}, pytest.param({}, marks=COMPILED)], ids=["padded", "unpadded"]
)
def test_compiled_layers_give_the_plain_step(checkpointing, inputs, monkeypatch):
    switch_off(monkeypatch)
    plain, fast = adapted(llama()), adapted(llama())
    assert "on, 2 of them" in speed_up(fast, keep_logits=False, steps=10**12)[-1]
    for model in (plain, fast) if checkpointing else ():
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model.get_base_model().enable_input_require_grads()
    (a, grads), (b, fast_grads) = step(plain, **inputs), step(fast, **inputs)
    assert torch.allclose(a.loss, b.loss, rtol=1e-6)
    assert all(torch.allclose(grads[n], fast_grads[n], rtol=1e-4, atol=1e-6) for n in grads)
    again = copy.deepcopy(fast)
    assert torch.allclose(again.eval()(IDS).logits, plain.eval()(IDS).logits, atol=1e-6)


@pytest.mark.product("attention")
@pytest.mark.parametrize("kept", [0, 512])
@pytest.mark.parametrize("block", [2, 64])
@pytest.mark.parametrize("mask", [None, "bool", "added", "keys"])
@pytest.mark.parametrize("heads", [2, 4])
def test_attention_is_the_formula(mask, heads, block, kept, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", block)
    monkeypatch.setattr(attention, "KEPT", kept)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, h, 5, 3, dtype=torch.float64, generator=generator).requires_grad_() for h in (4, heads, heads)
    )
    allowed = None if mask is None else torch.rand(2, 1, 5, 5, generator=generator) > 0.4
    if allowed is not None:
        allowed |= torch.eye(5, dtype=torch.bool)
    given = allowed
    if mask == "added":
        given = torch.zeros(2, 1, 5, 5, dtype=torch.float64).masked_fill(~allowed, -torch.inf)
    if mask == "keys":
        given = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 1, 1, 1]], dtype=torch.uint8)[:, None, None]
        allowed = given.bool() & torch.ones(5, 5, dtype=torch.bool).tril()
    expected = nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=allowed, is_causal=mask is None, scale=0.3, enable_gqa=heads != 4
    ).transpose(1, 2)
    assert torch.allclose(short_attention(q, k, v, given, 0.3), expected, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *t: short_attention(*t, given, 0.3), (q, k, v))


def test_attention_is_known_to_the_compiler():
    q, k, v = (
        torch.randn(2, h, 70, 8).transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for h in (4, 2, 2)
    )
    for mask in (None, torch.ones(2, 1, 1, 70, dtype=torch.uint8), torch.ones(2, 1, 70, 70, dtype=torch.bool)):
        torch.library.opcheck(attention._forward, (q, k, v, mask, 0.3))


def test_padding_reaches_attention_as_keys(monkeypatch):
    seen, own = [], attention.short_attention
    monkeypatch.setattr(attention, "short_attention", lambda *a: seen.append(a[3]) or own(*a))
    fast = adapted(llama())
    speed_up(fast)
    step(fast, attention_mask=MASK)
    assert [tuple(m.shape) for m in seen] == [(3, 1, 1, 12)] * 2


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "padded"])
def test_autocast_of_a_float32_model_runs(mask, either):
    exact, fast = adapted(llama()), adapted(llama())
    speed_up(fast, keep_logits=False)
    _, true = step(exact, attention_mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        _, grads = step(fast, attention_mask=mask)
    assert max(float((grads[n] - true[n]).norm() / true[n].norm()) for n in true) < 0.05


def test_what_attention_is_given_beside_the_mask_counts():
    sizes = {
        "vocab_size": 64,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 1,
        "num_heads": 4,
        "dropout_rate": 0.0,
    }
    found = []
    for fast in (False, True):
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0)).train()
        if fast:
            speed_up(model)
        loss = model(input_ids=IDS, labels=IDS.flip(1)).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["keys", "whole"])
def test_a_users_own_mask_means_what_it_says(kind, either):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    plain = BertModel(BertConfig(**sizes, num_attention_heads=4)).eval()
    fast = copy.deepcopy(plain)
    speed_up(fast)
    mask = MASK.bool()[:, None, None] if kind == "keys" else torch.ones(3, 1, 12, 12, dtype=torch.bool).tril()
    a, b = (m(input_ids=IDS, attention_mask=mask).last_hidden_state for m in (plain, fast))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_scaled_logits_are_seen():
    torch.manual_seed(0)
    model = CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.0625)).requires_grad_(False)
    assert any("loss or logits would differ by" in s for s in speed_up(model, keep_logits=False))


def test_a_fast_model_can_be_pickled(tmp_path):
    fast = llama().requires_grad_(False)
    speed_up(fast)
    torch.save(fast, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(again(IDS).logits, fast(IDS).logits)
    assert type(again) is type(fast)


def test_trained_copies_of_layers_see_no_later_token(either):
    found = []
    for fast in (False, True):
        torch.manual_seed(1)
        model = get_peft_model(llama(), LastLayersConfig(task_type="CAUSAL_LM", layers=1))
        if fast:
            speed_up(model)
        found.append(step(model, attention_mask=MASK)[1])
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][n], found[1][n], rtol=1e-4, atol=1e-6) for n in found[0])


def test_a_model_on_another_device_gets_nothing_that_is_for_processors(monkeypatch, either):
    """The device without data stands for a GPU."""
    monkeypatch.setattr(products, "ONEDNN", True)
    for dtype in (torch.float32, torch.bfloat16):
        model = adapted(llama(dtype)).to("meta")
        said = speed_up(model, keep_logits=False, steps=10**9)
        assert not [s for s in said if "native" in s or "oneDNN" in s or "one pass over memory" in s], said
        assert "attention: left as it is (sdpa), because ours is for processors" in said
        assert model.get_base_model().config._attn_implementation == "sdpa"


def test_a_model_on_two_devices_gets_nothing_that_is_for_one_of_them(monkeypatch, either):
    model = llama()
    model.model.layers[1].to("meta")
    said = speed_up(model)
    assert not [s for s in said if "native" in s or "batched products" in s], said
