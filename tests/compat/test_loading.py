"""transformers' own `load_adapter`, on every method's files, without `peft`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from ..train.child import Child

SCRIPT = Path(__file__).with_name("loaded_by_transformers.py")
TORN = """
import sys, torch
import afina
from transformers import T5Config, T5ForConditionalGeneration
def base():
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8))
model = afina.get_peft_model(base(), afina.VeraConfig(target_modules=["q", "v"]))
model.save_pretrained(sys.argv[1])
plain = base()
plain.load_adapter(sys.argv[1])
assert type(plain.shared).__name__ == "Embedding" and "shared_by_adapter" in dict(plain.named_children())
try:
    base().load_adapter(peft_config=afina.PeftConfig.from_pretrained(sys.argv[1]), adapter_state_dict={
        k: v for k, v in list(afina.load_peft_weights(sys.argv[1]).items())[1:]})
except afina.errors.CheckpointError as error:
    print("refused:", error)
"""


def run(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "afina.compat", *map(str, words)], capture_output=True, text=True,
                          check=False, env=environment)  # fmt: skip


def printed() -> str:
    """What the script prints, in a process where afina stands in for the reference."""
    from afina.compat import stand_in

    stand_in()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):  # 0, at its end
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return said.getvalue()


def test_every_methods_file_gives_what_from_pretrained_gives(child: Child) -> None:
    found = [json.loads(line) for line in child(printed).splitlines() if line.startswith("{")]
    assert len(found) >= 50
    for line in found:
        assert line["file"] < 1e-6, line
        assert line["state"] < 1e-6, line
        assert line["effect"] > 1e-3, line
        assert line["frozen"], line
        assert not line["left"], line


@pytest.mark.whole("the battery in this process shares and misses tensors")
def test_shared_tensors_go_beside_a_module_of_that_name_and_missing_ones_are_refused(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TORN)
    done = run(script, tmp_path / "adapter")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "refused: " in done.stdout
    assert "1 of" in done.stdout
