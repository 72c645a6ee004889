from __future__ import annotations

from dataclasses import dataclass

import peft
import pytest
import torch
from peft.tuners._buffer_dict import BufferDict as Theirs
from peft.utils import merge_utils
from torch import nn

import afina
from afina.compat import extras
from afina.core import registry
from afina.core.config import LayerConfig
from afina.core.hosts.adapter import Adapter
from afina.errors import ConfigError


@dataclass(kw_only=True)
class ShiftConfig(LayerConfig):
    """A method of a user's own."""


class Shift(Adapter):
    """Adds a trained vector."""

    def __init__(self, site, config):
        super().__init__(site, config)
        self.shift = site.zeros(site.base.out_features)

    def merged(self, weight, bias):
        return weight, self.shift if bias is None else bias + self.shift


def test_a_method_of_ones_own_is_trained_saved_loaded_and_merged(tmp_path, monkeypatch):
    monkeypatch.setattr(registry._REGISTRY, "table", dict(registry.methods()))  # forgotten after the test
    afina.register_peft_method(name="my_shift", config_cls=ShiftConfig, model_cls=Shift, prefix="my_")
    base, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)
    plain = base(x)
    model = afina.get_peft_model(base, ShiftConfig(target_modules=["0"]))
    model(x).sum().backward()
    (trained,) = [p for p in model.parameters() if p.requires_grad]
    assert trained.grad is not None
    with torch.no_grad():
        trained.fill_(2)
    assert torch.allclose(model(x), plain + 2)
    model.save_pretrained(tmp_path)
    assert "MY_SHIFT" in afina.PeftType
    fresh = nn.Sequential(nn.Linear(4, 4))
    fresh.load_state_dict({"0.weight": base[0].base_layer.weight, "0.bias": base[0].base_layer.bias})
    loaded = afina.PeftModel.from_pretrained(fresh, tmp_path)
    assert torch.equal(loaded(x), model(x))
    assert torch.allclose(loaded.merge_and_unload()(x), plain + 2, atol=1e-6)


def test_a_class_for_models_is_refused_with_the_place_that_says_how():
    with pytest.raises(ConfigError, match="A method of your own"):
        extras.register_peft_method(name="theirs", config_cls=ShiftConfig, model_cls=nn.Linear)


@pytest.mark.parametrize("kind", ["task_arithmetic", "magnitude_prune", "ties", "dare_linear", "dare_ties"])
def test_tensors_are_combined_as_in_the_reference(kind):
    torch.manual_seed(0)
    tensors, weights = [torch.randn(4, 5) for _ in range(3)], torch.tensor([0.5, 0.3, 1.0])
    options = {} if kind == "task_arithmetic" else {"density": 0.4}
    found = []
    for library in (merge_utils, extras):
        torch.manual_seed(1)
        found.append(getattr(library, kind)(tensors, weights, **options))
    assert torch.allclose(*found, atol=1e-6)


def test_blooms_keys_are_those_of_the_reference():
    tensors = list(torch.randn(4, 2, 3, 5, 6).split(2))
    theirs = peft.utils.bloom_model_postprocess_past_key_value([t.clone() for t in tensors])
    ours = extras.bloom_model_postprocess_past_key_value(tensors)
    assert len(ours) == len(theirs) == 2
    assert all(torch.equal(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))


def test_a_buffer_dict_answers_as_the_references():
    for kind in (Theirs, extras.BufferDict):
        buffers = kind({"a": torch.ones(2)}, persistent=True)
        buffers["b"] = torch.zeros(1)
        assert list(buffers) == list(buffers.keys()) == ["a", "b"]
        assert len(buffers) == 2
        assert "a" in buffers
        assert set(buffers.state_dict()) == {"a", "b"}
        del buffers["a"]
        assert [k for k, _ in buffers.items()] == ["b"]
        assert torch.equal(next(iter(buffers.values())), torch.zeros(1))
        buffers.update({"c": torch.ones(1)}.items())
        assert list(buffers) == ["b", "c"]


def test_an_adapted_layers_own_weight_is_read():
    model = afina.get_peft_model(nn.Sequential(nn.Linear(4, 4)), afina.LoraConfig(target_modules=["0"]))
    layer = model.base_model.model[0]
    assert torch.equal(extras.dequantize_module_weight(layer), layer.base_layer.weight)


def test_what_is_merged_is_not_merged_again():
    model = afina.get_peft_model(nn.Sequential(nn.Linear(4, 4)), afina.LoraConfig(target_modules=["0"]))
    layer = model.base_model.model[0]
    assert extras.check_adapters_to_merge(layer) == ["default"]
    model.merge_adapter()
    assert extras.check_adapters_to_merge(layer) == []
