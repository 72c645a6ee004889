"""Hosts whose parents read their weights, and hosts of trained copies: read, switched off and on, not finite."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import afina
from afina.core.hosts.adapter import Site
from afina.core.hosts.batch_rows import Rows
from afina.core.hosts.calls import entered, switched_off
from afina.core.hosts.host_kinds import ModulesToSaveWrapper, ReadHost
from afina.core.hosts.replacement import Replacement
from afina.errors import ConfigError, NumericError

from ..tiny import config, llama, mlp
from .test_adapter import Shift

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


def test_a_head_that_is_read_again_by_the_backward_pass_is_the_trained_one() -> None:
    model, seen = reading(), []

    def head(hidden: Any) -> Any:
        seen.append(model.lm_head.weight)
        return F.linear(hidden, model.lm_head.weight).square().sum()

    def forward(input_ids: Any = None, **kwargs: Any) -> Any:
        hidden = model.model(input_ids, **kwargs).last_hidden_state
        return torch.utils.checkpoint.checkpoint(head, hidden, use_reentrant=False)

    model.forward = forward
    model(IDS).backward()
    copy_of_head = model.lm_head.modules_to_save["default"].copy.weight
    assert len(seen) == 2
    assert all(weight is copy_of_head for weight in seen)


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


def site(host: Any) -> Site:
    return Site(host.base, "x", torch.float32, torch.device("cpu"))


@pytest.fixture
def read() -> ReadHost:
    """A layer that is read, with adapters "a" (ΔW = .5) and "b" (ΔW = 2) and a bias of "a"."""
    host = ReadHost(nn.Linear(3, 2).bfloat16())
    for name, by in (("a", 0.5), ("b", 2.0)):
        adapter = Shift(site(host), None)
        adapter.by.data.fill_(by)
        host.add(name, adapter)
    host.add_bias("a", nn.Parameter(torch.full((2,), 7.0)))
    return host


def added(host: ReadHost) -> float:
    """What adapters add to the weight that is read."""
    return round((host.weight.float() - host.base_layer.weight.float()).mean().item(), 1)


def test_read_weight_and_bias_are_those_with_the_active_adapters(read: ReadHost) -> None:
    assert not read.called
    assert read.weight is read.base_layer.weight
    assert read.bias is read.base_layer.bias
    assert read.called
    read.set_active(("a", "b"))
    assert added(read) == 2.5
    assert read.weight.dtype == read.bias.dtype == torch.bfloat16
    assert (read.bias == 7).all()
    read.set_active(("b",))
    assert added(read) == 2.0
    assert torch.equal(read.bias, read.base_layer.bias)


def test_read_weight_is_the_bases_in_calls_without_adapters(read: ReadHost) -> None:
    read.set_active(("a",))
    plain, bias = read.base_layer.weight, read.base_layer.bias
    with switched_off(read.scope):
        assert read.weight is plain
        assert read.bias is bias
    read.merge()
    assert torch.equal(read.weight, read.base_layer.weight)
    with switched_off(read.scope):
        assert read.weight is plain
    assert ReadHost(nn.Linear(2, 2, bias=False)).bias is None


def test_read_weight_is_that_of_the_rows(read: ReadHost) -> None:
    read.set_active(("a",))
    with entered(read.scope, Rows(("b", "b"))):
        assert added(read) == 2.0
        assert torch.equal(read.bias, read.base_layer.bias)
    with entered(read.scope, Rows(("a", "a"))):
        assert (read.bias == 7).all()
    with entered(read.scope, Rows(("other",))):
        assert read.weight is read.base_layer.weight
    read.enable_adapters(False)
    with entered(read.scope, Rows(("b", "b"))):
        assert added(read) == 0


@pytest.fixture
def copied() -> ModulesToSaveWrapper:
    """A layer with a trained copy "a", all of whose numbers are 3."""
    host = ModulesToSaveWrapper(nn.Linear(3, 2))
    adapter: Any = Replacement(site(host), None)
    for parameter in adapter.copy.parameters():
        parameter.data.fill_(3)
    host.add("a", adapter)
    host.set_active(("a",))
    return host


def test_copy_answers_while_it_applies(copied: Any) -> None:
    copy, base = copied.adapter("a").copy, copied.base_layer
    assert copied.original_module is base
    assert copied.weight is copy.weight
    assert copied.called
    assert copied.result() is copy
    assert copied.result(keep=False) is base
    with switched_off(copied.scope):
        assert copied.weight is base.weight
    copied.add("b", Replacement(site(copied), None))
    copied.set_active(("a", "b"))
    assert copied.result() is copied.adapter("b").copy
    copied.set_active(())
    assert copied.weight is base.weight
    assert copied.result() is base


def test_whoever_ties_weights_gets_the_originals(copied: Any) -> None:
    copied.is_tied = True
    assert copied.weight is copied.base_layer.weight
    assert not copied.called
    with copied.scope.users.calling():
        assert copied.weight is copied.adapter("a").copy.weight


def test_copy_is_not_merged_and_has_to_be_finite(copied: Any) -> None:
    before = copied.base_layer.weight.clone()
    copied.merge()
    assert torch.equal(copied.base_layer.weight, before)
    assert copied.merged == ()
    copied.adapter("a").copy.weight.data[0, 0] = float("nan")
    copied.merge(["other"])
    copied.merge([])
    with pytest.raises(NumericError):
        copied.merge()
    with pytest.raises(NumericError):
        copied.merge(["a"])


def test_trained_heads_are_hosts_of_their_own_kind() -> None:
    from ..tiny import config, mlp

    model = afina.get_peft_model(mlp(), config(modules_to_save=["head"]))
    head = model.get_base_model().head
    assert isinstance(head, ModulesToSaveWrapper)
    assert "modules_to_save.default.copy.weight" in head.state_dict()
    assert not head.is_tied


@pytest.mark.parametrize("options", [
    {"modules_to_save": ["head"]}, {"target_modules": ["head"], "peft_type": "LN_TUNING"},
], ids=str)  # fmt: skip
def test_two_that_train_the_same_module_are_not_active_together(options: dict[str, Any]) -> None:
    from ..tiny import config, mlp

    kind = afina.LNTuningConfig if options.pop("peft_type", "LORA") == "LN_TUNING" else config
    model = afina.get_peft_model(mlp(), kind(**options))
    model.add_adapter("b", kind(**options))
    model.add_adapter("c", config())
    with pytest.raises(ConfigError, match="only one can be active"):
        model.base_model.set_adapter(["default", "b"])
    assert model.active_adapters == ["default"]
    with pytest.raises(ConfigError, match="only one can be active"):
        model.merge_adapter(["default", "b"])
    assert not model.get_base_model().head.merged
    model.base_model.set_adapter(["b", "c"])
    assert model.get_base_model().head.active_adapters == (["b"] if "modules_to_save" in options else ["b", "c"])


def test_rows_of_an_embedding_have_one_active_adapter_each() -> None:
    model = afina.get_peft_model(llama(), afina.TrainableTokensConfig(token_indices=[4, 5]))
    model.add_adapter("same", afina.TrainableTokensConfig(token_indices=[5]))
    model.add_adapter("other", afina.TrainableTokensConfig(token_indices=[6]))
    with pytest.raises(ConfigError, match="only one can be active"):
        model.base_model.set_adapter(["default", "same"])
    model.base_model.set_adapter(["default", "other"])
    assert model.active_adapters == ["default", "other"]
