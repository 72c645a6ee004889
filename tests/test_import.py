"""What `import afina` brings, and what it must not."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import afina

NAMES = Path(__file__).parent / "public_names.txt"
HEAVY = (
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "trl",
    "rich",
    "typer",
    "pydantic",
    "huggingface_hub",
    "tokenizers",
)


@functools.cache
def _loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement", ["import afina", "from afina import LoraConfig, get_peft_model, PeftModel", "from afina import *"]
)
def test_importing_loads_no_heavy_library(statement: str) -> None:
    # What torch itself brings along is not ours to decide.
    assert not (_loaded_by(statement) - _loaded_by("import torch")) & set(HEAVY)


def test_importing_alone_costs_next_to_nothing() -> None:
    assert not _loaded_by("import afina") & {"torch", "safetensors", "numpy"}


def test_public_names_are_those_of_the_list() -> None:
    frozen = NAMES.read_text().split()
    assert frozen == sorted(frozen)
    now = afina.__all__
    assert now == frozen == [n for n in dir(afina) if not n.startswith("_")], (
        f"if it is meant, change {NAMES.name}: new {sorted({*now} - {*frozen})}, gone {sorted({*frozen} - {*now})}"
    )


def test_star_gives_every_name_of_the_list() -> None:
    namespace: dict[str, object] = {}
    exec("from afina import *", namespace)
    assert {*namespace} - {"__builtins__"} == {*NAMES.read_text().split()}
    assert namespace["LoraConfig"] is afina.LoraConfig


def test_no_name_is_a_module() -> None:
    """A function under the name of a subpackage would vanish as soon as that is imported."""
    assert not [n for n in afina.__all__ if isinstance(getattr(afina, n), ModuleType)]


@pytest.mark.parametrize("name", NAMES.read_text().split())
def test_every_public_name_exists(name: str) -> None:
    assert getattr(afina, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        afina.nope


def test_the_references_names_of_issue_two_are_there() -> None:
    tasks = [
        "CausalLM",
        "Seq2SeqLM",
        "SequenceClassification",
        "TokenClassification",
        "QuestionAnswering",
        "FeatureExtraction",
    ]
    wanted = {f"PeftModelFor{t}" for t in tasks} | {f"AutoPeftModelFor{t}" for t in tasks}
    wanted |= {"get_peft_model", "PeftModel", "AutoPeftModel", "PeftConfig", "TaskType", "PeftType", "LoraConfig"}
    wanted |= {"inject_adapter_in_model", "get_peft_model_state_dict", "set_peft_model_state_dict"}
    wanted |= {"get_layer_status", "get_model_status"}
    assert wanted <= set(dir(afina))
