"""A script in which only the import line was changed runs, whatever was imported before it."""

from __future__ import annotations

import pytest
from benchmarks.ecosystem import TOLERANCE, largest_difference, run
from benchmarks.scenarios import SCENARIOS

from .changed_imports import LIBRARIES, packages_without_peft, run_code, scenario, scenarios_in

SAYS = "afina stands in for peft"


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    return scenarios_in(tmp_path_factory.mktemp("scripts"))


@pytest.fixture(scope="module")
def without_peft(tmp_path_factory):
    return packages_without_peft(tmp_path_factory.mktemp("packages"))


@pytest.mark.whole("it takes half a minute, and its siblings run one way through the same")
@pytest.mark.parametrize("name", SCENARIOS)
def test_libraries_imported_first_get_the_references_numbers(name, scripts, without_peft):
    theirs = run(name, "peft")
    for packages in (None, without_peft):
        ours, said = scenario(name, scripts, packages)
        assert largest_difference(ours, theirs) <= TOLERANCE
        assert said.count(SAYS) == 1


def test_a_script_that_no_library_has_a_part_in_is_told_nothing():
    done = run_code("from afina import LoraConfig; LoraConfig()", None)
    assert done.returncode == 0, done.stderr
    assert SAYS not in done.stderr


@pytest.mark.whole("of what was imported before, no library is left with a name of the real one: below")
@pytest.mark.parametrize(
    "before",
    [pytest.param("", marks=pytest.mark.whole("the other one goes the longer way")), "import transformers.trainer;"],
)
@pytest.mark.parametrize(
    "installed", ["without", pytest.param("with", marks=pytest.mark.whole("as the scenarios run"))]
)
def test_libraries_take_the_stand_in_for_peft_from_the_first_config_on(before, installed, without_peft):
    code = f"""
{before}
from afina import LoraConfig, PeftModel
import sys
assert hasattr(sys.modules.get("peft", sys.modules["torch"]), "__file__")
LoraConfig()
import transformers.trainer
from transformers.utils import is_peft_available
assert is_peft_available() and transformers.trainer.PeftModel is PeftModel
"""
    done = run_code(code, without_peft if installed == "without" else None)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(SAYS) == 1


@pytest.mark.whole("the stand-in is off in this very process")
def test_the_variable_switches_it_off():
    code = "import os; os.environ['AFINA_STAND_IN'] = '0'; from afina import LoraConfig; LoraConfig(); import peft;"
    done = run_code(code + "assert peft.__file__", None)
    assert done.returncode == 0, done.stderr


@pytest.mark.whole("below, no library keeps a name of it")
@pytest.mark.parametrize(
    "use",
    [
        pytest.param("import peft", marks=pytest.mark.whole("the other one goes the longer way")),
        "from peft.tuners.lora import LoraLayer as Mine",
    ],
)
def test_a_script_that_imports_the_real_peft_keeps_it_and_is_told_once(use):
    code = f"{use}; from afina import LoraConfig; LoraConfig(); LoraConfig(); import peft; assert peft.__file__"
    done = run_code(code, None)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the real peft is in use here (__main__)") == 1


@pytest.mark.whole("a script that uses it above keeps it")
def test_what_a_library_made_with_the_real_peft_keeps_it():
    code = """
import transformers
config = transformers.LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                                  vocab_size=8)
model = transformers.LlamaForCausalLM(config)
import importlib
model.add_adapter(importlib.import_module("peft").LoraConfig(target_modules=["q_proj"]))
from afina import LoraConfig
LoraConfig()
assert __import__("peft").__file__
"""
    done = run_code(code, None)
    assert done.returncode == 0, done.stderr
    assert "a live " in done.stderr


@pytest.mark.whole
def test_no_library_is_left_with_a_name_of_the_real_peft():
    code = f"""
import peft; del peft
{LIBRARIES}
import trl.experimental.utils, trl.experimental.orpo
from afina import LoraConfig
LoraConfig()
import sys
import trl.trainer.sft_trainer as m
assert m.LoraConfig is LoraConfig if hasattr(m, "LoraConfig") else not hasattr(m.peft, "__file__")
"""
    done = run_code(code, None)
    assert done.returncode == 0, done.stderr
    assert "these names stay" not in done.stderr
