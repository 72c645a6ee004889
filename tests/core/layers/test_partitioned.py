"""What ZeRO-3 leaves in a weight's place is read as the weight; the engine itself is asked in the battery."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import afina
from afina.core.disk.fingerprint import digests
from afina.core.layers import partitioned, sharded
from afina.core.layers.recognise import base_weight
from afina.core.layers.whole_model import count_parameters, dense_copy
from afina.errors import MergeError


def put_away(parameter: nn.Parameter) -> None:
    """What DeepSpeed does to a parameter, in one process."""
    parameter.numbers, parameter.ds_tensor = parameter.data, parameter.data.reshape(-1)
    parameter.ds_shape, parameter.ds_numel, parameter.ds_persist = parameter.shape, parameter.numel(), False
    parameter.ds_status = SimpleNamespace(name="NOT_AVAILABLE")
    parameter.data = torch.empty(0)


@pytest.fixture
def engine(monkeypatch):
    """A stand-in for DeepSpeed that remembers how many tensors it gathered at once."""
    most = []

    @contextmanager
    def gathered(parameters):
        most.append(len(parameters))
        for parameter in parameters:
            parameter.data, parameter.ds_status = parameter.numbers, SimpleNamespace(name="AVAILABLE")
        yield
        for parameter in parameters:
            put_away(parameter)

    external = lambda module, parameter: module.__dict__.setdefault("external", []).append(parameter)  # noqa: E731
    zero = SimpleNamespace(GatheredParameters=gathered, register_external_parameter=external)
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(zero=zero))
    return most


def made() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


@pytest.fixture
def model() -> nn.Module:
    return made()


def test_a_weights_shape_and_numbers_are_known_where_they_are_not_here(engine, model):
    expected, digest = model[0].weight.detach().clone(), digests(model)
    numbers = count_parameters(model)[1]
    for parameter in model.parameters():
        put_away(parameter)
    base = base_weight(model[0])
    assert base.shape == (6, 4)
    assert torch.equal(base.read()[0], expected)
    assert digests(model) == digest
    assert count_parameters(model)[1] == numbers
    assert all(map(partitioned.is_placeholder, model.parameters()))
    assert set(engine) == {1}
    assert sharded.is_spread(model[0])
    with pytest.raises(MergeError, match="spread over processes"):
        base.check_merge(requantise=False)


def test_a_copy_that_trains_has_all_numbers(engine, model):
    expected = model[2].weight.detach().clone()
    for parameter in model.parameters():
        put_away(parameter)
    copy = dense_copy(model[2])
    assert torch.equal(copy.weight, expected)
    assert not partitioned.is_partitioned(copy.weight)
    assert partitioned.is_placeholder(model[2].weight)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}, {"bias": "all"},
                                     {"modules_to_save": ["2"], "target_modules": ["0"]}])  # fmt: skip
def test_an_adapter_begins_on_placeholders_as_on_weights(options, engine, model):
    def begun(base):
        torch.manual_seed(1)
        config = afina.LoraConfig(**{"r": 2, "target_modules": ["0", "2"], **options})
        return afina.get_peft_model_state_dict(afina.get_peft_model(base, config))

    expected, base = begun(model), made()
    for parameter in base.parameters():
        put_away(parameter)
    found = begun(base)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    assert set(engine) <= {1}


def test_adapters_stay_whole_and_hosts_gather_what_they_read(engine, model):
    adapted = afina.get_peft_model(model, afina.LoraConfig(r=2, target_modules=["0"]))
    called = []
    trainer = SimpleNamespace(persistent_parameters=[])
    ours = [p for p in adapted.parameters() if p.requires_grad]
    for parameter in ours:
        put_away(parameter)
        parameter._z3_optimizer = trainer
        parameter.all_gather = called.append
    base = adapted.get_base_model()
    weight = base[0].base_layer.weight
    put_away(weight)
    adapted._settled.settle(adapted, base)
    assert called == [ours]
    assert trainer.persistent_parameters == ours
    assert all(p.ds_persist and p.is_external_param for p in ours)
    assert base[0].external[0] is weight
    adapted._settled.settle(adapted, base)  # once is enough
    assert called == [ours]
