"""What is kept elsewhere comes back as it was, one copy ahead, once each; copies have a stand-in for CUDA's streams."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import afina
from afina.devices.found import Device
from afina.errors import RecipeError
from afina.kernels.cuda import offload as module
from afina.kernels.cuda.offload import Kept, offload_layers
from afina.kernels.speed import speed_up
from afina.train.loop import fast_paths


class Copies:
    """Copies at once, and notes them; what is out cannot be reached but through it."""

    kind = torch.Tensor

    def __init__(self):
        self.log, self.bytes = [], 0

    def out(self, tensor):
        self.log.append("out")
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor.clone()

    def back(self, held, device):
        self.log.append("back")
        return held.clone()

    def wait(self):
        self.log.append("wait")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(module, "LEAST", 256)


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    return afina.get_peft_model(LlamaForCausalLM(config), afina.LoraConfig(init_lora_weights=False)).train()


def gradients(model):
    ids = torch.arange(3, 27).view(2, 12)
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("fast", [False, True])
def test_a_step_whose_activations_wait_elsewhere_is_the_plain_step_to_the_bit(fast):
    plain, moved, copies = llama(), llama(), Copies()
    for model in (plain, moved):
        if fast:
            speed_up(model)
    assert offload_layers(moved, copies) == 3
    expected, found = gradients(plain), gradients(moved)
    if fast:  # gated parts keep another of their tensors then
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    else:
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    weights = sum(p.numel() * 4 for p in moved.parameters())
    assert copies.bytes > weights / 10
    assert copies.log.count("back") >= copies.log.count("out") > 3


def test_nothing_is_moved_where_nothing_is_learnt():
    model, copies = llama(), Copies()
    offload_layers(model, copies)
    ids = torch.arange(3, 27).view(2, 12)
    with torch.no_grad():
        model(input_ids=ids)
    model.eval()(input_ids=ids)
    assert copies.log == []


def test_the_next_tensor_is_on_its_way_before_it_is_asked_for():
    copies = Copies()
    kept = Kept(copies, frozenset())
    tensors = [torch.randn(100) for _ in range(4)]
    packed = [kept.pack(t) for t in tensors]
    assert packed == [0, 1, 2, 3]
    copies.log.clear()
    for place in reversed(range(4)):
        assert torch.equal(kept.unpack(place), tensors[place])
        assert len(kept.ready) <= 2
    assert copies.log == ["back", "wait", "back", "wait", "back", "wait", "back", "wait"]
    assert torch.equal(kept.unpack(3), tensors[3])  # a second backward pass


def test_a_tensor_that_is_saved_twice_is_copied_once_and_another_in_its_place_again():
    copies = Copies()
    kept, x = Kept(copies, frozenset()), torch.randn(100)
    assert kept.pack(x) == kept.pack(x) == 0
    before = x.clone()
    x.add_(1)
    assert kept.pack(x) == 1
    assert torch.equal(kept.unpack(0), before)
    assert torch.equal(kept.unpack(1), x)
    assert copies.log.count("out") == 2


def test_a_tensor_that_is_saved_in_two_shapes_while_others_are_under_way_comes_back_in_both():
    kept, x = Kept(Copies(), frozenset()), torch.randn(4, 6, 6)
    others = [torch.randn(100) for _ in range(2)]
    places = [kept.pack(t) for t in (x, others[0], x.view(1, 4, 6, 6), others[1], x)]
    assert len(set(places)) == 4
    for place, tensor in zip(places, (x, others[0], x.view(1, 4, 6, 6), others[1], x), strict=True):
        assert torch.equal(kept.unpack(place), tensor)


def test_parameters_small_and_scattered_tensors_stay():
    weight = torch.nn.Parameter(torch.randn(20, 20))
    kept = Kept(Copies(), frozenset([weight.untyped_storage()._cdata]))
    for stays in (weight.data, weight.data.T, torch.randn(8), torch.randn(40, 40)[:, ::2], torch.arange(900)):
        assert kept.pack(stays) is stays
        assert kept.unpack(stays) is stays
    heads = torch.randn(2, 5, 4, 8).transpose(1, 2)
    assert kept.unpack(kept.pack(heads)).stride() == heads.stride()


# -- in a recipe ------------------------------------------------------------------------------------------------------


def recipe(offload="activations", checkpointing=False):
    training = SimpleNamespace(offload=offload, gradient_checkpointing=checkpointing)
    return SimpleNamespace(training=training, model=SimpleNamespace(device="cuda"))


def test_processors_and_checkpointing_are_refused_in_words():
    gpu, cpu = Device("cuda:0", "NVIDIA H100"), Device("cpu", "a processor")
    fast_paths.check_offload(recipe("none"), cpu)
    fast_paths.check_offload(recipe(), gpu)
    with pytest.raises(RecipeError, match=r"training.offload: activations can be moved out of a CUDA device only"):
        fast_paths.check_offload(recipe(), cpu)
    with pytest.raises(RecipeError, match="leave one of them out"):
        fast_paths.check_offload(recipe(checkpointing=True), gpu)


def test_a_run_says_how_many_layers_move_or_that_there_are_none():
    notes = []
    reporter = SimpleNamespace(note=notes.append)
    fast_paths.offload(recipe(), llama(), reporter, Copies())
    assert notes == ["activations of 3 layers wait for the backward pass in main memory"]
    with pytest.raises(RecipeError, match="no decoder layers"):
        fast_paths.offload(recipe(), torch.nn.Linear(2, 2), reporter, Copies())
