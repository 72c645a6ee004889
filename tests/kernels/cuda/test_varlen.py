"""Attention by lengths gives packed rows what each has alone, and makes no mask; torch's kernel has a stand-in."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from afina.devices import place
from afina.devices.found import Device
from afina.kernels.cuda import varlen
from afina.kernels.cuda.flash import reads_lengths, use_flash
from afina.kernels.cuda.varlen import RowLengths

H100 = Device("cuda:0", "a GPU", bfloat16=True, capability=(9, 0))
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "vocab_size": 64, "initializer_range": 0.2}  # fmt: skip
MODELS = {
    "grouped heads": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)),
    "sliding window": lambda: MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=4)),
    "normed heads": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8)),
    "one product for q, k, v": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
}
ROWS = (9, 1, 14, 5)


def model_of(name, dtype=torch.float32):
    torch.manual_seed(0)
    return MODELS[name]().to(dtype).train()


def formula(calls):
    """Of torch's kernel, which no processor has, with the checks that it makes; it notes its calls."""

    def attend(q, k, v, starts, ends, longest, longest_k, *, scale, window_size, enable_gqa):
        assert starts is ends
        assert (starts.dtype, longest, window_size[1]) == (torch.int32, longest_k, 0)
        assert enable_gqa == (q.shape[1] != k.shape[1])
        assert max(starts.diff()) <= longest
        calls.append((tuple(q.shape), longest, window_size))
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
        out = []
        for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            scores = torch.einsum("qhd,khd->hqk", q[a:b], k[a:b]) * scale
            far = torch.arange(b - a)[:, None] - torch.arange(b - a)
            hidden = (far < 0) | (far > window_size[0] if window_size[0] >= 0 else far < 0)
            shares = scores.masked_fill(hidden, float("-inf")).float().softmax(-1).to(q.dtype)
            out.append(torch.einsum("hqk,khd->qhd", shares, v[a:b]))
        return torch.cat(out)

    return attend


@pytest.fixture
def kernel(monkeypatch):
    """The formula in the kernel's place; returns the calls."""
    from torch.nn.attention import varlen as torchs

    calls = []
    monkeypatch.setattr(torchs, "varlen_attn", formula(calls))
    varlen.register()
    return calls


def test_lengths_say_positions_starts_and_a_longest_row_of_few_values():
    told = RowLengths.of([3, 1, 5])
    assert told.positions.tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 4]]
    assert (told.starts.tolist(), told.starts.dtype, told.longest) == ([0, 3, 4, 9], torch.int32, 8)
    assert [RowLengths.of([n]).longest for n in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]
    for wrong in ([], [2, 0]):
        with pytest.raises(ValueError, match="each needs one or more"):
            RowLengths.of(wrong)


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_of_rows_end_to_end_are_those_of_rows_alone(name, kernel):
    ids = torch.randint(1, 64, (sum(ROWS),), generator=torch.Generator().manual_seed(1))
    model = model_of(name)
    alone = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in ids.split(ROWS)])
    alone.square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.set_attn_implementation(place.VARLEN)
    assert not kernel
    found = model(input_ids=ids[None], use_cache=False, **RowLengths.of(ROWS).inputs()).logits[0]
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    found.square().sum().backward()
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=2e-3, atol=1e-3)
    window = (3, 0) if "window" in name else (-1, 0)
    assert kernel == [((29, 4, 8), 16, window)] * 2


def test_no_mask_is_made_for_packed_rows(kernel, monkeypatch):
    from transformers import masking_utils

    model = model_of("grouped heads")
    model.set_attn_implementation(place.VARLEN)
    made = []
    own = masking_utils.sdpa_mask
    monkeypatch.setattr(masking_utils, "sdpa_mask", lambda **how: made.append(how) or own(**how))
    ids = torch.arange(1, 30)[None]
    model(input_ids=ids, use_cache=False, **RowLengths.of(ROWS).inputs())
    assert (len(kernel), made) == (2, [])
    model(input_ids=ids, use_cache=False)
    assert (len(kernel), len(made)) == (2, 1)


def test_padded_rows_and_generation_keep_to_torchs_attention(kernel):
    model = model_of("grouped heads").eval()
    ids, mask = torch.arange(1, 17).view(2, 8), torch.ones(2, 8, dtype=torch.long)
    mask[1, :3] = 0
    expected = model(input_ids=ids, attention_mask=mask).logits, model.generate(ids, max_new_tokens=4, do_sample=False)
    model.set_attn_implementation(place.VARLEN)
    found = model(input_ids=ids, attention_mask=mask).logits, model.generate(ids, max_new_tokens=4, do_sample=False)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not kernel


def test_packed_rows_without_their_lengths_are_refused_not_mixed(kernel):
    model = model_of("grouped heads")
    model.set_attn_implementation(place.VARLEN)
    with pytest.raises(ValueError, match="without their lengths"):
        model(input_ids=torch.arange(1, 30)[None], position_ids=RowLengths.of(ROWS).positions, use_cache=False)


@pytest.mark.parametrize("more", [{"dropout": 0.1}, {"softcap": 30.0}, {"s_aux": torch.zeros(4)}, {"is_causal": False}])
def test_what_lengths_do_not_tell_is_refused(more, kernel):
    q = torch.randn(1, 4, 5, 8)
    told = RowLengths.of([3, 2]).inputs()
    with pytest.raises(ValueError, match="attention by lengths has no"):
        varlen.attention_forward(torch.nn.Module(), q, q, q, None, **told, **more)
    assert varlen.attention_forward(torch.nn.Module(), q, q, q, None, **told)[0].shape == (1, 5, 4, 8)


def test_autocast_reaches_the_kernel_in_its_dtype(kernel):
    q = torch.randn(1, 4, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = varlen.attention_forward(torch.nn.Module(), q, q, q, None, **RowLengths.of([3, 2]).inputs())
    assert out.dtype == torch.bfloat16


# -- the choice -------------------------------------------------------------------------------------------------------


def test_a_gpu_takes_it_where_a_trial_gives_torchs_logits(kernel, monkeypatch):
    monkeypatch.setattr(place, "_has", lambda name: name != "flash_attn")
    model = model_of("grouped heads", torch.bfloat16)
    assert use_flash(model, H100, packed=True) == "attention by lengths: on"
    assert reads_lengths(model)
    assert kernel
    assert model.training
    wrong = model_of("grouped heads", torch.bfloat16)
    monkeypatch.setattr(varlen, "attend", lambda q, *_: q)
    assert "off, because logits would differ by" in use_flash(wrong, H100, packed=True)
    assert not reads_lengths(wrong)


def test_without_a_gpu_torchs_kernel_fails_and_torchs_attention_stays(monkeypatch):
    monkeypatch.setattr(place, "_has", lambda name: name != "flash_attn")
    model = model_of("grouped heads", torch.bfloat16)
    assert use_flash(model, H100, packed=True).startswith("attention by lengths: off, because ")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("setting", ["attention_dropout", "attention_chunk_size"])
def test_models_that_need_more_than_lengths_keep_to_torch(setting, kernel, monkeypatch):
    monkeypatch.setattr(place, "_has", lambda name: True)
    model = model_of("grouped heads", torch.bfloat16)
    setattr(model.config, setting, 1)
    assert use_flash(model, H100, packed=True) == f"attention by lengths: off, because the model has {setting}"
    assert not kernel


def test_a_kernel_for_as_many_keys_as_queries_gets_them_repeated(monkeypatch):
    from torch.nn.attention import varlen as torchs

    calls = []
    takes = formula(calls)

    def older(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        return takes(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size, enable_gqa=False)

    q, k, v = (torch.randn(7, heads, 4) for heads in (6, 2, 2))
    found = []
    for kernel in (takes, older):
        monkeypatch.setattr(torchs, "varlen_attn", kernel)
        varlen._takes_groups.cache_clear()
        found.append(varlen.attend(q, k, v, torch.tensor([0, 3, 7], dtype=torch.int32), 4, 0.5, None))
    varlen._takes_groups.cache_clear()
    torch.testing.assert_close(*found)


def test_empty_rows_after_the_last_change_no_place():
    told = RowLengths.of([3, 2], rows=4)
    assert (told.starts.tolist(), told.positions.tolist()) == ([0, 3, 5, 5, 5], [[0, 1, 2, 0, 1]])
    assert RowLengths.of([3, 2], rows=1).starts.tolist() == [0, 3, 5]
