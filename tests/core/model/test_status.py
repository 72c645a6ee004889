"""What state the adapters are in, beside the reference's answer."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import peft
import pytest

import afina
from afina.errors import ConfigError

from ..tiny import config, mlp

OPTIONS: dict[str, Any] = {"r": 2, "target_modules": ["up", "down"]}


def pair(**options: Any) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = peft.get_peft_model(mlp(), peft.LoraConfig(**OPTIONS, **options))
    return afina.get_peft_model(mlp(), afina.LoraConfig(**OPTIONS, **options)), reference


def _nothing(model: Any) -> None:
    pass


def _second(model: Any) -> None:
    model.add_adapter("second", type(model.peft_config["default"])(r=2, target_modules=["up"]))


def _switched(model: Any) -> None:
    _second(model)
    model.set_adapter("second")


def _merged(model: Any) -> None:
    model.merge_adapter()


@pytest.mark.parametrize("change", [_nothing, _second, _switched, _merged], ids=lambda f: f.__name__)
@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["head"]}], ids=str)
def test_status_has_the_references_fields_and_values(change: Any, options: dict[str, Any]) -> None:
    mine, reference = pair(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(mine)
        change(reference)
        a, b = afina.get_model_status(mine), peft.get_model_status(reference)
    a, b = dataclasses.asdict(a), dataclasses.asdict(b)
    assert a.keys() == b.keys()
    if change is _merged and options:
        b["merged_adapters"] = a["merged_adapters"]  # a whole trained copy is never merged: the reference leaves it out
    if change is _switched and options:
        b["active_adapters"] = a["active_adapters"]  # the reference's head stays at an adapter that is no longer active
    assert {k: v for k, v in a.items() if k != "adapter_model_type"} == {
        k: v for k, v in b.items() if k != "adapter_model_type"
    }
    layers, others = afina.get_layer_status(mine), peft.get_layer_status(reference)
    assert [dataclasses.asdict(x).keys() for x in layers[:1]] == [dataclasses.asdict(x).keys() for x in others[:1]]
    names = {x.name: x for x in others}
    for layer in layers:
        other = names[layer.name]
        assert (layer.enabled, layer.available_adapters, layer.requires_grad) == (
            other.enabled,
            other.available_adapters,
            other.requires_grad,
        )


def test_status_while_disabled() -> None:
    mine, reference = pair()
    with mine.disable_adapter(), reference.disable_adapter():
        assert mine is not None
        assert afina.get_model_status(mine).enabled is peft.get_model_status(reference).enabled is False


def test_status_of_an_injected_model() -> None:
    model = afina.inject_adapter_in_model(config(), mlp())
    assert afina.get_model_status(model).adapter_model_type == "None"
    assert len(afina.get_layer_status(model)) == 6


def test_status_of_a_plain_model_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no adapters"):
        afina.get_layer_status(mlp())
