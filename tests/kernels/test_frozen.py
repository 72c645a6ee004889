from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from afina import LoraConfig, get_peft_model
from afina.errors import AfinaError
from afina.kernels.frozen import FrozenPrefix, Kept, kept_in

IDS = torch.randint(3, 60, (3, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[0, :4] = 0


def bare(**changes):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    return LlamaForCausalLM(LlamaConfig(**sizes, **changes))


def adapted(layers=(2, 3), base=None, **changes):
    base = bare(**changes) if base is None else base
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False,
                        layers_to_transform=list(layers))  # fmt: skip
    return get_peft_model(base, config).train()


def step(model, rows=slice(None)):
    model.zero_grad()
    out = model(input_ids=IDS[rows], attention_mask=MASK[rows], labels=IDS[rows])
    out.loss.backward()
    return out.loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same(a, b):
    assert torch.allclose(a[0], b[0], rtol=1e-6)
    assert a[1]
    assert a[1].keys() == b[1].keys()
    return all(torch.allclose(a[1][n], b[1][n], atol=1e-6) for n in a[1])


@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_kept_outputs_give_the_plain_step(checkpointing):
    model = adapted()
    if checkpointing is not None:
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.get_base_model().enable_input_require_grads()
    plain = step(model)
    with FrozenPrefix(model) as prefix:
        assert prefix.depth == 2
        first, second, part = step(model), step(model), step(model, slice(1, 3))
        assert (prefix.hits, prefix.misses) == (2, 1)
    assert same(plain, first)
    assert same(plain, second)
    assert same(step(model, slice(1, 3)), part)


def test_known_examples_do_not_run_the_frozen_layers():
    model, ran = adapted(), []
    for number, layer in enumerate(model.get_base_model().model.layers):
        layer.mlp.register_forward_hook(lambda *_, n=number: ran.append(n))
    with FrozenPrefix(model):
        step(model)
        ran.clear()
        step(model)
    assert ran == [2, 3]


def test_examples_are_known_whatever_padding_follows_them():
    model = adapted()

    def padded(more):
        ids = torch.nn.functional.pad(IDS[1:], (0, more))
        mask = torch.nn.functional.pad(torch.ones_like(IDS[1:]), (0, more))
        labels = torch.nn.functional.pad(IDS[1:], (0, more), value=-100)
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss.detach()

    plain = padded(3)
    with FrozenPrefix(model) as prefix:
        padded(0), padded(5)
        assert torch.allclose(padded(3), plain, rtol=1e-6)
        assert (prefix.hits, prefix.misses) == (2, 1)


def test_frozen_layers_below_run_without_autograd_anyway():
    model, seen = adapted(), []
    for layer in model.get_base_model().model.layers:
        layer.register_forward_hook(lambda module, args, out: seen.append(out.requires_grad))
    step(model)
    assert seen == [False, False, True, True]


def test_a_changed_weight_empties_the_cache():
    model = adapted()
    with FrozenPrefix(model) as prefix:
        step(model)
        with torch.no_grad():
            model.get_base_model().model.layers[0].mlp.up_proj.weight.mul_(1.5)
        changed = step(model)
        assert prefix.hits == 0
    assert same(step(model), changed)


def test_models_of_one_base_find_what_others_kept_and_those_with_other_layers_frozen_keep_their_own():
    base, common, found = bare(), Kept(), []
    shared = {id(tensor): tensor for tensor in [*base.parameters(), *base.buffers()]}
    with kept_in(common):
        for layers in ((2, 3), (2, 3), (3,)):
            model = adapted(layers, copy.deepcopy(base, dict(shared)))
            with FrozenPrefix(model) as prefix:
                kept = step(model)
            found.append((prefix.depth, prefix.hits, prefix.kept is common))
            assert same(step(model), kept)
    assert found == [(2, 0, True), (2, 1, True), (3, 0, False)]
    assert common.used > 0


def test_evaluation_and_full_memory_compute_everything():
    model = adapted()
    with FrozenPrefix(model, memory=2**11) as prefix:
        step(model)
        step(model)
        assert prefix.hits == 0
        assert prefix.kept.used <= 2**11
        kept = model.eval()(input_ids=IDS, attention_mask=MASK, use_cache=True)
        assert kept.past_key_values.get_seq_length() == 12


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(AfinaError, match="nothing below is frozen"):
        FrozenPrefix(adapted(layers=(0, 3)))
    with pytest.raises(AfinaError, match="random"), FrozenPrefix(adapted(attention_dropout=0.5)):
        pass


def test_another_scale_of_an_adapter_on_frozen_layers_empties_the_cache():
    model = adapted(range(4))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and "layers.0." not in name)
    host = model.get_base_model().model.layers[0].self_attn.v_proj
    with FrozenPrefix(model) as prefix:
        first = step(model)
        host.set_scale("default", 3.0)
        found = step(model)
        again = step(model)
    assert (prefix.hits, prefix.misses) == (1, 2)
    plain = step(model)
    assert same(plain, found)
    assert same(plain, again)
    assert (first[0] - found[0]).abs() > 1e-3
