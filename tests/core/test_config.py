"""Configurations: what is refused, what is kept, what a file may say."""

from __future__ import annotations

import dataclasses
import json
import typing
import warnings
from pathlib import Path
from typing import Any

import pytest

import afina
from afina.core.config import CONFIG_NAME, PeftConfig
from afina.core.registry import methods
from afina.errors import AfinaError, AfinaWarning, ConfigError

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


# -- files ------------------------------------------------------------------------------------------------------------


def write(folder: Path, text: str | bytes) -> Path:
    """A config file with the given content."""
    folder.mkdir(exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    (folder / CONFIG_NAME).write_bytes(data)
    return folder


GOOD = {"peft_type": "LORA", "r": 4, "target_modules": ["q"]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '"x"',
        json.dumps(GOOD)[:-3],
        '{"peft_type": "LORA", "r": NaN}',
        '{"peft_type": "LORA", "lora_alpha": Infinity}',
        '{"peft_type": "LORA", "lora_alpha": 1e999}',
        '{"peft_type": "LORA", "r": 4, "r": 8}',
        '{"a":' * 100 + "1" + "}" * 100,
        "[" * 100_000,
        json.dumps(GOOD).encode("utf-16"),
        b"\xff\xfe\x00",
        json.dumps(GOOD) + " x",
        "{'r': 4}",
        '{"peft_type": "LORA", "r": ' + "9" * 5000 + "}",
        '{"peft_type": "LORA", "r": 1' + "0" * 400 + "}",
        '{"peft_type": null, "r": 4}',
        '{"peft_type": ["LORA"]}',
        '{"peft_type": 7}',
        '{"peft_type": {"a": 1}}',
        '{"peft_type": "NOPE"}',
        '{"peft_type": "LORA", "task_type": {}}',
        '{"peft_type": "LORA", "task_type": ["X"]}',
    ],
    ids=lambda t: repr(t[:30]),
)
def test_damaged_config_files_are_refused_by_name(text: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(AfinaError) as caught:
        afina.LoraConfig.from_pretrained(write(tmp_path / "a", text))
    assert len(str(caught.value).splitlines()) <= 4
    assert CONFIG_NAME in str(caught.value)


def test_huge_config_file_is_refused_unread(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "{}")
    with (folder / CONFIG_NAME).open("ab") as file:
        file.truncate(11_000_000)
    with pytest.raises(ConfigError, match="too large"):
        PeftConfig.from_pretrained(folder)


def test_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", json.dumps(GOOD).encode("utf-8-sig"))
    assert PeftConfig.from_pretrained(folder).r == 4


def test_json_error_names_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 2 column"):
        PeftConfig.from_pretrained(write(tmp_path / "a", '{"peft_type": "LORA",\n "r" 4}'))


@pytest.mark.parametrize("name", ["lora", "LORA", "Lora"])
def test_peft_type_is_found_in_any_case(name: str, tmp_path: Path) -> None:
    assert (
        type(PeftConfig.from_pretrained(write(tmp_path / "a", json.dumps({**GOOD, "peft_type": name}))))
        is afina.LoraConfig
    )


def test_unknown_peft_type_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LORA"):
        PeftConfig.from_pretrained(write(tmp_path / "a", json.dumps({**GOOD, "peft_type": "LORRA"})))


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("lora_alpa", "lora_alpha"),
        ("target_module", "target_modules"),
        ("lora_dropuot", "lora_dropout"),
        ("use_rslor", "use_rslora"),
    ],
)
def test_typing_errors_in_keys_name_the_nearest(typo: str, meant: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", json.dumps({"peft_type": "LORA", typo: ["q"]}))
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        PeftConfig.from_pretrained(folder)


def test_unknown_key_is_kept_rewritten_and_warned_of_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", json.dumps({**GOOD, "frobnicate_rate": 0.5, "peft_version": "9.9.9"}))
    with pytest.warns(AfinaWarning, match=r"frobnicate_rate.*9\.9\.9") as caught:
        config = PeftConfig.from_pretrained(folder)
    assert len(caught) == 1
    config.save_pretrained(tmp_path / "b")
    assert json.loads((tmp_path / "b" / CONFIG_NAME).read_text())["frobnicate_rate"] == 0.5


OLD = {
    "0.3": {
        "base_model_name_or_path": "x",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 8,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    },
    "0.6": {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "x",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 8,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    },
    "0.13": {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "x",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 8,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    },
}


@pytest.mark.parametrize("version", OLD)
def test_files_of_older_releases_load(version: str, tmp_path: Path) -> None:
    config = PeftConfig.from_pretrained(write(tmp_path / "a", json.dumps(OLD[version])))
    assert (config.r, config.lora_alpha, config.target_modules) == (8, 16, ["q_proj", "v_proj"])


def test_the_references_own_file_loads_without_a_warning(tmp_path: Path) -> None:
    import peft

    peft.LoraConfig(r=4, target_modules=["q"], exclude_modules=["k"]).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = PeftConfig.from_pretrained(tmp_path)
    assert (config.r, config.exclude_modules) == (4, ["k"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_qalora", True),
        ("alora_invocation_tokens", [1, 2]),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("arrow_config", {"top_k": 1}),
    ],
)
def test_options_that_change_the_mathematics_are_refused(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=key):
        PeftConfig.from_pretrained(write(tmp_path / "a", json.dumps({**GOOD, key: value})))


def test_reference_reads_the_config_that_is_written_here(tmp_path: Path) -> None:
    import peft

    mine = afina.LoraConfig(
        r=4,
        lora_alpha=7,
        target_modules=["b", "a"],
        rank_pattern={"a": 2},
        use_rslora=True,
        modules_to_save=["c"],
        task_type="CAUSAL_LM",
        lora_dropout=0.25,
        bias="lora_only",
    )
    mine.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = peft.PeftConfig.from_pretrained(tmp_path)
    for key, value in mine.to_dict().items():
        got = getattr(theirs, key)
        if key not in ("peft_version", "target_modules"):
            assert (got.value if hasattr(got, "value") else got) == value, key
    assert set(theirs.target_modules) == {"a", "b"}


def test_arguments_of_the_caller_win_over_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", json.dumps(GOOD))
    assert PeftConfig.from_pretrained(folder, inference_mode=True).inference_mode is True


def test_class_of_another_method_is_refused(tmp_path: Path) -> None:
    other = next(n for n in methods() if n != "LORA")
    with pytest.raises(ConfigError):
        afina.LoraConfig.from_pretrained(write(tmp_path / "a", json.dumps({"peft_type": other})))


def test_saved_config_is_the_same_text_every_time(tmp_path: Path) -> None:
    for name in "ab":
        afina.LoraConfig(target_modules={"z", "y", "x"}).save_pretrained(tmp_path / name)
    assert (tmp_path / "a" / CONFIG_NAME).read_bytes() == (tmp_path / "b" / CONFIG_NAME).read_bytes()
    assert json.loads((tmp_path / "a" / CONFIG_NAME).read_text())["target_modules"] == ["x", "y", "z"]
