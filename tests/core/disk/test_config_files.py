"""What a config file may say."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest

import afina
from afina.core.config import CONFIG_NAME, PeftConfig
from afina.core.registry import methods
from afina.errors import AfinaError, AfinaWarning, ConfigError

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


@pytest.mark.parametrize("kind", sorted({k for k in methods() if hasattr(peft.PeftType, k)} - {"ADALORA"}))
def test_reference_knows_every_key_that_a_plain_config_writes(kind: str, tmp_path: Path) -> None:
    methods()[kind].config(
        **({"adapter_len": 2, "adapter_layers": 1} if kind == "ADAPTION_PROMPT" else {})
    ).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Unexpected keyword")
        assert type(peft.PeftConfig.from_pretrained(tmp_path)).__name__ == methods()[kind].config.__name__


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
        ("megatron_config", {"tensor_model_parallel_size": 2}),
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
