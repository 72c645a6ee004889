"""Configurations: what is refused, what is kept, what a file may say."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest

import afina
from afina.core.config import PeftConfig
from afina.core.registry import methods
from afina.errors import ConfigError

DERIVED = {("CPT", "num_virtual_tokens"): "the number of cpt_token_ids, as in the reference"}
"""Fields that a method sets itself, whatever it is given."""

WRONG = {
    "int": ["8", 4.5, True, [1], {"a": 1}],
    "float": ["0.1", True, [0.1]],
    "bool": ["true", 1, 0.0, [True]],
    "str": [1, 0.5, True, ["x"]],
    "list": ["[1]", 7, {"a": 1}],
    "dict": ["x", 7, ["a"]],
}
"""Values by the kind of field that they are wrong for."""


def _needed(cls: type[PeftConfig]) -> dict[str, Any]:
    """Arguments without which a config cannot be built at all."""
    return {
        f.name: 1
        for f in dataclasses.fields(cls)
        if f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }


def _accepted(hint: Any) -> set[str]:
    """Names of the plain types that an annotation allows."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, type(int | str)) else (hint,)
    names = set()
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is typing.Any or dataclasses.is_dataclass(origin) or origin is typing.Literal:
            return set(WRONG)
        names.add(getattr(origin, "__name__", str(origin)))
    return names | ({"int"} if "float" in names else set())


def _wrong_fields() -> list[Any]:
    out = []
    for name, known in methods().items():
        hints = typing.get_type_hints(known.config)
        for field in dataclasses.fields(known.config):
            if not field.init or field.name in ("peft_type", "task_type") or (name, field.name) in DERIVED:
                continue
            allowed = _accepted(hints[field.name])
            if not allowed & set(WRONG):
                continue
            values = [v for k in sorted(allowed & set(WRONG)) for v in WRONG[k] if type(v).__name__ not in allowed]
            out += [pytest.param(name, field.name, v, id=f"{name}-{field.name}-{v!r}") for v in values[:3]]
    return out


@pytest.mark.product("values of a wrong type")
@pytest.mark.parametrize(("method", "field", "value"), _wrong_fields())
def test_wrong_type_names_key_value_and_expected_type(method: str, field: str, value: Any) -> None:
    cls = methods()[method].config
    with pytest.raises(ConfigError) as caught:
        cls(**{**_needed(cls), field: value})
    text = str(caught.value)
    assert field in text
    assert "got:" in text
    assert "expected:" in text
    assert len(text.splitlines()) <= 4


def _bounds() -> list[Any]:
    out = []
    for name, known in methods().items():
        for field in dataclasses.fields(known.config):
            bounds = {} if (name, field.name) in DERIVED else field.metadata.get("bounds", {})
            for sign, edge in bounds.items():
                bad = edge - 1 if sign in ("ge",) else edge + 1 if sign == "le" else edge
                out.append(pytest.param(name, field.name, bad, id=f"{name}-{field.name}-{sign}{edge}"))
    return out


@pytest.mark.parametrize(("method", "field", "value"), _bounds())
def test_values_out_of_range_are_refused(method: str, field: str, value: float) -> None:
    cls = methods()[method].config
    hint = str(typing.get_type_hints(cls)[field])
    number = int(value) if "int" in hint and float(value).is_integer() else float(value)
    given: Any = {"x": number} if "dict" in hint else [number] if "list" in hint else number
    with pytest.raises(ConfigError, match=field) as caught:
        cls(**{**_needed(cls), field: given})
    assert "out of range" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["lora_alpha", "lora_dropout"])
def test_numbers_must_be_finite(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        afina.LoraConfig(**{field: value})


@pytest.mark.parametrize(
    "options",
    [
        {"bias": "some"},
        {"init_lora_weights": "pisa"},
        {"init_lora_weights": "pissa_niter_x"},
        {"init_lora_weights": "pissa_niter_²"},
        {"task_type": "CAUSAL"},
        {"peft_type": "IA3"},
        {"use_dora": True, "lora_bias": True},
        {"layers_pattern": "layers"},
        {"target_modules": ".*up", "layers_to_transform": [1]},
        {"target_modules": ".*up", "layers_to_transform": 1, "layers_pattern": "layers"},
        {"rank_pattern": {"up": 0}},
        {"rank_pattern": {"up": True}},
        {"rank_pattern": {3: 4}},
        {"alpha_pattern": {"up": float("nan")}},
        {"target_modules": [1, 2]},
        {"layers_to_transform": ["1"]},
        {"lora_dropout": 1.0},
        {"r": 0},
        {"r": -1},
        {"r": 10**9},
        {"lora_alpha": 1e308},
    ],
    ids=str,
)
def test_contradictions_and_bad_values_are_refused_with_four_lines(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        afina.LoraConfig(**options)
    assert len(str(caught.value).splitlines()) <= 4
    assert isinstance(caught.value, ValueError)


def test_collections_become_lists() -> None:
    assert afina.LoraConfig(target_modules={"v", "q"}).target_modules == ["q", "v"]
    assert afina.LoraConfig(target_modules=("v", "q")).target_modules == ["v", "q"]


def test_task_type_is_taken_as_text_or_member() -> None:
    for task in ("SEQ_2_SEQ_LM", afina.TaskType.SEQ_2_SEQ_LM):
        assert afina.LoraConfig(task_type=task).task_type is afina.TaskType.SEQ_2_SEQ_LM


def test_peft_type_behaves_like_the_references_enumeration() -> None:
    import peft

    kind = afina.LoraConfig().peft_type
    assert kind == afina.PeftType.LORA == "LORA" == peft.PeftType.LORA
    assert (kind.value, kind.name) == ("LORA", "LORA")
    assert afina.PeftType("LORA") in list(afina.PeftType)
    assert "LORA" in afina.PeftType
    assert {kind: 1}[peft.PeftType.LORA] == 1
    with pytest.raises((AttributeError, KeyError)):
        afina.PeftType["NOPE"]
