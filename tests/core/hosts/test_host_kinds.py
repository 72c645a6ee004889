"""Trained copies of whole modules: read by weight, switched off and on, with numbers that are none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import afina
from afina.errors import ConfigError, NumericError

from ..tiny import config, llama, mlp

IDS = torch.arange(3, 9)[None]


def reading(adapted: bool = True, tied: bool = True) -> Any:
    """A model of transformers that computes with its head's weight instead of calling the head; as transformers'
    `add_adapter` adapts it."""
    from transformers import LlamaForCausalLM

    class Reading(LlamaForCausalLM):
        def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
            return F.linear(self.model(input_ids, **kwargs).last_hidden_state, self.lm_head.weight)

    model = llama(tied=tied)
    model.__class__ = Reading
    if adapted:
        own = config(target_modules=["q_proj"], modules_to_save=["lm_head"])
        afina.inject_adapter_in_model(own, model)
        with torch.no_grad():
            model.lm_head.modules_to_save["default"].copy.weight.add_(1)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_is_read_is_the_trained_one(tied: bool) -> None:
    model = reading(tied=tied)
    weight = model.lm_head.modules_to_save["default"].copy.weight
    hidden = model.model(IDS).last_hidden_state
    out = model(IDS)
    assert torch.equal(out, F.linear(hidden, weight))
    assert not torch.equal(out, reading(adapted=False, tied=tied)(IDS))
    model.tie_weights()  # reads the head too, and must not put the copy into the base
    assert torch.equal(model(IDS), out)
    assert (model.lm_head.original_module.weight is model.model.embed_tokens.weight) == tied
    assert torch.equal(copy.deepcopy(model)(IDS), out)


def test_a_call_that_fails_has_ended() -> None:
    model = reading()
    with pytest.raises(IndexError):
        model(torch.tensor([[9999]]))
    assert not model.lm_head.scope.users.inside
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_nothing_stays_on_the_model_when_the_copy_goes() -> None:
    from afina.compat.functional import delete_adapter

    model = reading()
    assert model._forward_hooks
    delete_adapter(model, "default")
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not model._forward_hooks_always_called
    assert torch.equal(model(IDS), reading(adapted=False)(IDS))


def test_a_copy_is_switched_on_again_with_the_layers() -> None:
    """transformers' `enable_adapters` goes through the layers with adapters, and not through trained copies."""
    model = reading()
    out = model(IDS)
    layer = model.model.layers[0].self_attn.q_proj
    for host in (layer, model.lm_head):
        host.enable_adapters(False)
    assert torch.equal(model.lm_head(torch.ones(1, 16)), model.lm_head.original_module(torch.ones(1, 16)))
    layer.enable_adapters(True)
    assert torch.equal(model(IDS), out)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.inner(x)))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Block(), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x))


@pytest.mark.parametrize("name", ["inner.weight", "norm.running_mean"])
@pytest.mark.parametrize("verb", ["merge_adapter", "merge_and_unload"])
def test_a_block_with_a_number_that_is_none_is_not_put_in_place(verb: str, name: str) -> None:
    base = Blocks().eval()
    model = afina.get_peft_model(base, config(target_modules=["last"], modules_to_save=["first"]))
    state = base.first.modules_to_save["default"].copy.state_dict()
    state[name].view(-1)[0] = torch.nan
    with pytest.raises(NumericError, match=rf"first: {name}"):
        getattr(model, verb)()
    assert torch.isfinite(model.unload()(torch.ones(2, 4))).all()


def test_data_parallel_is_refused_with_what_to_do() -> None:
    plain = mlp()
    afina.inject_adapter_in_model(config(), plain)
    for model in (plain, afina.get_peft_model(mlp(), config()),
                  afina.get_peft_model(llama(), afina.PrefixTuningConfig(num_virtual_tokens=2))):  # fmt: skip
        with pytest.raises(ConfigError, match="torchrun"):
            # As torch does for every GPU; here there is none.
            [m._replicate_for_data_parallel() for m in model.modules()]
