"""Everything around a step: injection, loading, switching, mixed batches, merging, import.

python -m benchmarks.handling [--rounds N]
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .timing import interleaved


def linears(count: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(64, 64) for _ in range(count)))


def llama(layers: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=1000, hidden_size=128, intermediate_size=256, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2,
    )).eval()  # fmt: skip


def config(library: Any, **options: Any) -> Any:
    return library.LoraConfig(**{"r": 8, "target_modules": "all-linear", "init_lora_weights": False, **options})


def injection(rounds: int, libraries: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for what, make, targets in (
        ("inject into 560 linears", lambda: linears(560), [str(i) for i in range(560)]),
        ("inject into 32 layers, 224 targets", lambda: llama(32), "all-linear"),
    ):
        base, best = make(), {n: float("inf") for n in libraries}
        for _ in range(rounds + 2):
            for name, library in libraries.items():
                model = copy.deepcopy(base)
                gc.collect()
                start = time.process_time()
                library.get_peft_model(model, config(library, target_modules=targets))
                best[name] = min(best[name], time.process_time() - start)
        out[what] = {n: {"cpu_min": t} for n, t in best.items()}
    return out


def twelfth(rounds: int, libraries: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Loading the twelfth adapter beside eleven others on 560 linears."""
    config_of = {"target_modules": [str(i) for i in range(560)]}
    libraries["peft"].get_peft_model(linears(560), config(libraries["peft"], **config_of)).save_pretrained(folder)
    models = {}
    for name, library in libraries.items():
        models[name] = library.get_peft_model(linears(560), config(library, **config_of), adapter_name="a0")
        for i in range(1, 11):
            models[name].load_adapter(str(folder), adapter_name=f"a{i}")

    def load(model: Any) -> None:
        model.load_adapter(str(folder), adapter_name="twelfth")

    best = {n: float("inf") for n in models}
    for _ in range(rounds):
        for name, model in models.items():
            start = time.process_time()
            load(model)
            best[name] = min(best[name], time.process_time() - start)
            model.delete_adapter("twelfth")
    switch = {n: (lambda m=m: (m.set_adapter("a1"), m.set_adapter("a2"))) for n, m in models.items()}
    return {"load the twelfth adapter": {n: {"cpu_min": t} for n, t in best.items()},
            "switch adapters twice": interleaved(switch, rounds)}  # fmt: skip


def batches(rounds: int, libraries: dict[str, Any]) -> dict[str, Any]:
    out = {}
    ids = torch.randint(0, 1000, (16, 32), generator=torch.Generator().manual_seed(0))
    for count in (1, 4, 16):
        names = [f"a{i % count}" for i in range(16)]
        runs = {}
        for lib_name, library in libraries.items():
            model = library.get_peft_model(llama(8), config(library, task_type="CAUSAL_LM"), adapter_name="a0").eval()
            for i in range(1, count):
                model.add_adapter(f"a{i}", config(library, task_type="CAUSAL_LM"))
            model.eval()
            runs[f"{lib_name}, one batch"] = torch.no_grad()(lambda m=model, n=names: m(ids, adapter_names=n))

            def one_by_one(m: Any = model, n: list[str] = names) -> None:
                for name in dict.fromkeys(n):
                    m.set_adapter(name)
                    m(ids[[i for i, x in enumerate(n) if x == name]])

            runs[f"{lib_name}, one by one"] = torch.no_grad()(one_by_one)
        out[f"{count} adapters in a batch of 16"] = interleaved(runs, rounds)
    return out


def merging(rounds: int, libraries: dict[str, Any]) -> dict[str, Any]:
    models = {n: lib.get_peft_model(llama(32), config(lib, task_type="CAUSAL_LM")) for n, lib in libraries.items()}
    runs = {n: (lambda m=m: (m.merge_adapter(), m.unmerge_adapter())) for n, m in models.items()}
    return {"merge and unmerge 224 targets": interleaved(runs, rounds)}


def imports(rounds: int) -> dict[str, Any]:
    """Seconds that the import of what a script uses takes after torch is there (`import afina` alone loads nothing)."""
    code = ("import torch, time; t = time.process_time(); from {} import LoraConfig, get_peft_model; "
            "print(time.process_time() - t)")  # fmt: skip
    best = {}
    for name in ("peft", "afina"):
        times = [float(subprocess.run([sys.executable, "-c", code.format(name)], capture_output=True, text=True,
                                      check=True).stdout.split()[-1]) for _ in range(rounds)]  # fmt: skip
        best[name] = {"cpu_min": min(times)}
    return {"import LoraConfig and get_peft_model after torch": best}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    import peft

    import afina

    libraries = {"peft": peft, "afina": afina}
    found = {
        **injection(rounds, libraries),
        **batches(rounds, libraries),
        **merging(rounds, libraries),
        **imports(rounds),
    }
    with tempfile.TemporaryDirectory() as folder:
        found |= twelfth(rounds, libraries, Path(folder))
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
