"""flash-attn's attention is taken where the device has it and a trial agrees; tried with stand-ins for the package."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from afina.devices import place
from afina.devices.found import Device
from afina.kernels.cuda.flash import use_flash

GPU = Device("cuda:0", "a GPU", bfloat16=True, capability=(8, 0))


def right(*args, **kwargs):
    return sdpa_attention_forward(*args, **kwargs)


def wrong(*args, **kwargs):
    out, shares = sdpa_attention_forward(*args, **kwargs)
    return 2 * out, shares


def fails(*args, **kwargs):
    raise RuntimeError("no kernel image\nfor this device")


@pytest.fixture
def package(monkeypatch):
    """Puts a function in the place of the package's, under a name of its own."""

    def use(function):
        name = f"varlen_{function.__name__}"
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)
        monkeypatch.setattr(place, "attention", lambda device, dtype: name)
        return name

    return use


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                        num_attention_heads=4)).to(torch.bfloat16)  # fmt: skip


@pytest.mark.parametrize(
    ("function", "told"),
    [(right, "on"), (wrong, "off, because logits would differ by"), (fails, "off, because no kernel image")],
)
def test_it_stays_where_a_trial_gives_torchs_logits(package, function, told):
    name, model = package(function), llama().train()
    said = use_flash(model, GPU)
    assert said.startswith(f"flash attention: {told}")
    assert model.config._attn_implementation == (name if told == "on" else "sdpa")
    assert model.training


def test_it_is_off_where_the_package_or_the_device_is_missing():
    model = llama()
    assert "flash-attn is not installed, or not for this device" in use_flash(model, Device("cpu", "a processor"))
    assert model.config._attn_implementation == "sdpa"
