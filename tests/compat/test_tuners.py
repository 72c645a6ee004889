"""`peft.tuners.*` in the stand-in: what is an instance of what, as in the reference."""

from __future__ import annotations

import inspect
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

peft = pytest.importorskip("peft", reason="the reference is the oracle")

SCRIPT = """
import json, sys
if sys.argv[1] == "afina":
    import afina.compat
    afina.compat.stand_in()
import importlib, torch, peft
from torch import nn
from peft.tuners.tuners_utils import BaseTunerLayer

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.dense = nn.Embedding(8, 8), nn.Linear(8, 8)
        self.conv, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

out = {}
cases = json.loads(sys.argv[2])
for name, targets, options in cases:
    torch.manual_seed(0)
    config = getattr(peft, name)(target_modules=targets, **options)
    model = peft.get_peft_model(Net(), config)
    for folder, classes in json.loads(sys.argv[3]).items():
        module = importlib.import_module("peft.tuners." + folder)
        for cls in classes:
            kind = getattr(module, cls)
            assert isinstance(kind, type)
            for place in targets:
                key = f"{name} {place} {folder}.{cls}"
                out[key] = isinstance(model.base_model.model.get_submodule(place), kind)
            out[f"{name} base_model {folder}.{cls}"] = isinstance(model.base_model, kind)
    out[f"{name} tuner layer"] = [isinstance(model.base_model.model.get_submodule(p), BaseTunerLayer) for p in targets]
    out[f"{name} not adapted"] = isinstance(model.base_model.model.head, BaseTunerLayer)
    status = peft.get_layer_status(model)
    out[f"{name} status"] = [[s.name, s.active_adapters, s.enabled, s.available_adapters] for s in status]
    whole = peft.get_model_status(model)
    out[f"{name} model"] = [whole.trainable_params, whole.num_adapter_layers, whole.enabled, whole.active_adapters]
print("RESULT", json.dumps(out))
"""
CASES = [
    ("LoraConfig", ["dense", "table", "conv"], {}),
    ("AdaLoraConfig", ["dense"], {"total_step": 10}),
    ("IA3Config", ["dense", "conv"], {"feedforward_modules": []}),
    ("LoHaConfig", ["dense", "conv"], {}),
    ("LoKrConfig", ["dense"], {}),
    ("OFTConfig", ["dense", "conv"], {"oft_block_size": 4}),
    ("HRAConfig", ["dense", "conv"], {}),
    ("VeraConfig", ["dense"], {}),
    ("MissConfig", ["dense"], {"r": 4}),
    ("C3AConfig", ["dense"], {"block_size": 4}),
]
CLASSES = {
    "lora": ["LoraLayer", "Linear", "Embedding", "Conv2d", "LoraModel"],
    "adalora": ["AdaLoraLayer", "SVDLinear", "AdaLoraModel"],
    "ia3": ["IA3Layer", "Linear", "Conv2d", "IA3Model"],
    "loha": ["LoHaLayer", "Linear", "Conv2d", "LoHaModel"],
    "lokr": ["LoKrLayer", "Linear", "LoKrModel"],
    "oft": ["OFTLayer", "Linear", "Conv2d", "OFTModel"],
    "hra": ["HRALayer", "HRALinear", "HRAConv2d", "HRAModel"],
    "vera": ["VeraLayer", "Linear", "VeraModel"],
    "miss": ["MissLayer", "MissLinear", "MissModel"],
    "c3a": ["C3ALayer", "C3ALinear", "C3AModel"],
}


def answers(library: str, script: Path) -> dict[str, object]:
    done = subprocess.run([sys.executable, str(script), library, json.dumps(CASES), json.dumps(CLASSES)], text=True,
                          capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


@pytest.mark.whole("every class has its name below")
def test_hosts_and_models_are_instances_of_what_the_references_are(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ours, theirs = answers("afina", script), answers("peft", script)
    different = {k: (ours[k], theirs[k]) for k in theirs if ours[k] != theirs[k]}
    assert not different
    assert sum(v is True for v in ours.values()) > 40


def test_every_model_and_layer_class_of_the_reference_has_its_name() -> None:
    from afina.compat.tuners import named

    missing = []
    for info in pkgutil.iter_modules(peft.tuners.__path__):
        if not info.ispkg or info.name == "mixed":
            continue
        module = __import__(f"peft.tuners.{info.name}", fromlist=["x"])
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, (peft.tuners.tuners_utils.BaseTunerLayer,
                                                             peft.tuners.tuners_utils.BaseTuner)):  # fmt: skip
                found = named(module.__name__, name)
                missing += [f"{module.__name__}.{name}"] if found is None else []
    # Layers on storages that run on GPUs only.
    assert missing == ["peft.tuners.adalora.SVDQuantLinear", "peft.tuners.lora.GPTQLoraLinear"]
