"""Updates that the layers' own products carry are the formula's, and the weights stay what and where they seem."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import afina
from afina.core.disk.fingerprint import fingerprint
from afina.kernels.updates import siblings
from afina.kernels.updates.joint import Layer, lora_linears
from afina.kernels.updates.wide import ADD, ADDED, CARRY, Way, make_room

WAYS = (Way(CARRY, ADD), Way(ADD, CARRY), Way(CARRY, CARRY))
IDS = torch.arange(3, 27).view(2, 12)


def rand(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def layers(count, dtype=torch.float64, width=7):
    """Of different widths and ranks, with and without bias."""
    return [
        Layer(nn.Parameter(rand(out, width, seed=i, dtype=dtype), requires_grad=False),
              rand(out, seed=9, dtype=dtype) if i else None, rand(r, width, seed=10 + i).requires_grad_(),
              rand(out, r, seed=20 + i).requires_grad_(), 0.5 + i)
        for i, (out, r) in enumerate([(5, 2), (3, 4), (6, 1)][:count])
    ]  # fmt: skip


def formula(x, layer):
    return F.linear(x, layer.weight, layer.bias) + layer.scale * F.linear(F.linear(x, layer.a), layer.b)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [1, 3])
def test_outputs_and_gradients_are_the_formulas(count, way):
    x, given = rand(2, 4, 7, seed=30).requires_grad_(), layers(count)
    expected = [formula(x, layer) for layer in given]
    room = make_room([layer.weight for layer in given], [len(layer.a) for layer in given], way)
    assert room.spare == 8
    torch.testing.assert_close(list(lora_linears(x, given, room)), expected)

    def run(x, *flat):
        pairs = zip(given, flat[::2], flat[1::2], strict=True)
        return lora_linears(x, [layer._replace(a=a, b=b) for layer, a, b in pairs], room)

    assert torch.autograd.gradcheck(run, (x, *(t for layer in given for t in (layer.a, layer.b))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_no_further_from_the_exact_result_than_added_updates(dtype):
    x, given = rand(32, 64, seed=30, dtype=dtype).requires_grad_(), layers(3, dtype, 64)
    found = []
    for room in (None, make_room([layer.weight for layer in given], (2, 4, 1), WAYS[-1])):
        out = torch.cat(lora_linears(x, given, room), -1)
        found.append([out, *torch.autograd.grad(out.square().mean(), [x, *(layer.b for layer in given)])])
    wide = [layer._replace(weight=layer.weight.double(), bias=None if layer.bias is None else layer.bias.double())
            for layer in given]  # fmt: skip
    exact_x = x.detach().double().requires_grad_()
    out = torch.cat([formula(exact_x, layer) for layer in wide], -1)
    exact = [out, *torch.autograd.grad(out.square().mean(), [exact_x, *(layer.b for layer in wide)])]
    for added, carried, true in zip(*found, exact, strict=True):
        assert (carried.double() - true).norm() <= 1.5 * (added.double() - true).norm()
    assert not torch.equal(found[0][0], found[1][0])


def always(*_):
    return WAYS[-1]


def never(*_):
    return ADDED


def llama(choose=always, dtype=torch.float32, **options):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                        num_attention_heads=4, num_key_value_heads=2)).to(dtype)  # fmt: skip
    fields = {"task_type": "CAUSAL_LM", "r": 4, "init_lora_weights": False, "target_modules": "all-linear", **options}
    model = afina.get_peft_model(base, afina.LoraConfig(**fields)).train()
    assert siblings.join(base, lambda: base(input_ids=IDS), choose) == 2
    return model


def step(model, **inputs):
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS, **inputs).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def carried(model):
    """How many layers' weights lie in a buffer with room."""
    all_hosts = [h for _, h in siblings.hosts(model.get_base_model())]
    return sum(not h.base.weight.is_contiguous() for h in all_hosts)


def same(found, expected, far=1e-4):
    assert len(found) == len(expected) > 2
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= far * b.norm()


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_a_models_step_is_the_same_and_its_weights_are_stored_once(options):
    model, plain = llama(**options), llama(never, **options)
    before, weights = carried(model), {n: p.clone() for n, p in model.named_parameters()}
    same(step(model), step(plain))
    assert (before, carried(model), carried(plain)) == (0, 7, 0)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    size = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.parameters()}
    own = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in plain.parameters()}
    assert sum(size.values()) < 1.6 * sum(own.values())  # ranks of 4, 8 and 12 beside widths of 32 and 48


def test_steps_with_checkpointing_are_the_same_to_the_bit():
    model = llama()
    first = step(model)
    torch.testing.assert_close(step(model), first, rtol=0, atol=0)
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.get_base_model().enable_input_require_grads()
    torch.testing.assert_close(step(model), first, rtol=0, atol=0)


@pytest.mark.parametrize("change", ["another rank", "the same rank", "rows", "two at once", "switched off"])
def test_what_else_runs_on_the_layers_is_right(change):
    found = []
    for choose in (never, always):
        model, inputs = llama(choose), {}
        first = step(model)
        torch.manual_seed(1)
        rank = 4 if change == "the same rank" else 3
        model.add_adapter("b", afina.LoraConfig(r=rank, init_lora_weights=False, target_modules=["q_proj", "up_proj"]))
        if change == "rows":
            inputs = {"adapter_names": ["b", "default"]}
        elif change == "switched off":
            with model.disable_adapter(), torch.no_grad():
                first = [model(input_ids=IDS).logits]
        else:
            model.set_adapter(["default", "b"] if change == "two at once" else "b")
        found.append([*first, *step(model, **inputs), *step(model, **inputs)])
    same(*found)


def test_copies_pickles_and_moved_models_give_the_same_and_have_room_of_their_own(tmp_path):
    model = llama()
    expected = step(model)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    twin = copy.deepcopy(model)
    for other in (twin, again):
        same(step(other), expected)
        assert carried(other) == 7
    with torch.no_grad():
        for _, host in siblings.hosts(twin.get_base_model()):
            host.base.weight.zero_()
    torch.testing.assert_close(step(model), expected, rtol=0, atol=0)
    moved = model.double()
    assert carried(moved) == 0
    same([t.float() for t in step(moved)], expected)
    assert carried(moved) == 7


def test_what_is_saved_and_merged_is_the_plain_models(tmp_path):
    found = []
    for choose in (never, always):
        model = llama(choose)
        step(model)
        path = tmp_path / choose.__name__
        model.save_pretrained(path / "adapter")
        print_of = fingerprint(model.get_base_model())
        model.merge_adapter()
        merged = model.eval()(input_ids=IDS).logits
        model.unmerge_adapter()
        base = model.unload()
        base.save_pretrained(path / "base")
        torch.save(base.state_dict(), path / "state.pt")
        state = torch.load(path / "state.pt")
        files = [(path / "adapter" / "adapter_model.safetensors").read_bytes(),
                 (path / "base" / "model.safetensors").read_bytes()]  # fmt: skip
        found.append((print_of, files, merged, state))
    (a, files, merged, state), (b, wide_files, wide_merged, wide_state) = found
    assert a == b
    assert files == wide_files
    torch.testing.assert_close(wide_merged, merged)
    torch.testing.assert_close(wide_state, state, rtol=0, atol=0)


def test_a_weight_that_others_keep_for_their_backward_pass_counts_as_unchanged():
    model = llama()
    step(model)
    x = torch.ones(2, 32, requires_grad=True)
    with model.disable_adapter():  # autograd keeps the weight
        out = model.get_base_model().model.layers[0].mlp.gate_proj(x).sum()
    step(model)
    out.backward()
    assert x.grad is not None


def test_weights_that_lie_otherwise_have_no_room():
    weight = nn.Parameter(rand(5, 7, seed=0), requires_grad=False)
    room = make_room([weight], [4], WAYS[0])
    assert room.holds([weight])
    assert not room.holds([nn.Parameter(weight.data.clone())])
    assert not room.holds([nn.Parameter(weight.data.contiguous())])
    assert not room.holds([nn.Parameter(room.buffer(weight)[1:6, :7])])
