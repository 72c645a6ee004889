from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, importlib.metadata, importlib.util
import peft
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraConfig as Same, LoraLayer
from peft.utils.other import fsdp_auto_wrap_policy
from peft.functional import delete_adapter, set_adapter
from torch import nn
assert Same is LoraConfig and not hasattr(peft, "__file__")
assert importlib.metadata.version("peft") == peft.__version__
assert importlib.util.find_spec("peft") is not None
base = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
model = get_peft_model(base, LoraConfig(target_modules=["0"]))
assert isinstance(model, PeftModel) and type(model).__module__.startswith("afina.")
assert isinstance(model.base_model.model[0], LoraLayer)
model.add_adapter("more", LoraConfig(target_modules=["0", "1"]))
set_adapter(base, "more")
assert delete_adapter(base, "more") == ["default"]
assert callable(fsdp_auto_wrap_policy(base))
try:
    from peft import no_such_name
except ImportError as error:
    print("refused:", error)
print(sys.argv[1:])
"""


def run(*words, **changes):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


def test_a_script_runs_unchanged_and_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = run("-m", "afina.compat", str(script), "--flag", "7")
    assert done.returncode == 0, done.stderr
    assert "['--flag', '7']" in done.stdout
    assert "refused:" in done.stdout
    assert "afina stands in for peft" in done.stderr


@pytest.mark.whole("tests/compat/test_default.py has the usual way into it")
def test_where_the_real_peft_is_in_use_it_is_refused():
    done = run("-c", "import peft, afina.compat; afina.compat.stand_in()")
    assert done.returncode != 0
    assert "too late to stand in for peft: the real one is in use" in done.stderr
    assert "import peft's names from afina" in done.stderr


@pytest.mark.whole("tests/compat/test_default.py has the usual way into it")
def test_libraries_that_were_imported_before_are_told():
    code = """
import transformers.trainer, afina, afina.compat
afina.compat.stand_in()
assert transformers.trainer.PeftModel is afina.PeftModel
import inspect, pickle, peft
assert pickle.loads(pickle.dumps(peft)) is peft
assert inspect.getmodule(transformers.Trainer) is transformers.trainer
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


def test_every_name_of_the_tree_is_there():
    code = """
import afina.compat, importlib
afina.compat.stand_in()
from afina.compat.modules import TREE
n = 0
for module, names in TREE.items():
    for name in names:
        assert getattr(importlib.import_module(module), name) is not None
        n += 1
print(n)
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40


LIBRARIES = ("transformers", "trl", "diffusers", "accelerate", "sentence_transformers")


def imports(library):
    """What a library's files import from `peft`: (module, name)."""
    folder = Path(importlib.util.find_spec(library).origin).parent
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if "peft" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "peft":
                yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.whole("tests/compat/test_names.py has every public name")
def test_everything_that_the_libraries_import_is_there():
    wanted = sorted({pair for library in LIBRARIES for pair in imports(library)})
    assert len(wanted) >= 30
    code = """
import sys, json, importlib, afina.compat
afina.compat.stand_in()
print(json.dumps([p for p in json.loads(sys.argv[1]) if not hasattr(importlib.import_module(p[0]), p[1])]))
"""
    done = run("-c", code, json.dumps(wanted))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
