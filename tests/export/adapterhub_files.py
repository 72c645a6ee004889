"""Makes and checks the files of `adapterhub/` with AdapterHub's own library.

    python -m venv VENV && VENV/bin/pip install torch "adapters==1.3.0"
    VENV/bin/python tests/export/adapterhub_files.py make        writes tests/export/adapterhub/*
    python tests/export/adapterhub_files.py write DIR            afina loads each, changes it, and writes it to DIR
    VENV/bin/python tests/export/adapterhub_files.py check DIR   AdapterHub's library loads those and compares outputs

The library has an environment of its own because it pins another release of transformers.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from adapterhub_cases import CASES, FOLDER, NAME, build, fill, output

EXPECTED = "expected.safetensors"


def make() -> None:
    import adapters

    for key, case in CASES.items():
        folder = FOLDER / key
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        model = build(case)
        plain = output(model, case)
        adapters.init(model)
        model.add_adapter(NAME, config=getattr(adapters, case.base)(**case.options), set_active=True)
        fill(((n, p) for n, p in model.named_parameters() if f".{NAME}." in n), salt=key)
        model.eval()
        found = output(model, case)
        assert (found - plain).abs().max() > 0.05, key
        model.save_adapter(str(folder), NAME, with_head=False, use_safetensors=True)
        save_file({"output": found.contiguous()}, folder / EXPECTED)
        print(f"{key}: {sum(f.stat().st_size for f in folder.iterdir())} bytes")


def write(out: Path) -> None:
    import afina
    from afina.export import adapterhub

    for key, case in CASES.items():
        model = afina.PeftModel.from_pretrained(build(case), FOLDER / key, is_trainable=True).eval()
        fill(((n, p) for n, p in model.named_parameters() if p.requires_grad), salt=f"changed {key}")
        adapterhub.save(model, out / key, name="ours")
        save_file({"output": output(model, case).contiguous()}, out / key / EXPECTED)


def check(out: Path) -> None:
    import adapters

    worst = 0.0
    for key, case in CASES.items():
        model = build(case)
        adapters.init(model)
        info: dict = {}
        model.load_adapter(str(out / key), set_active=True, use_safetensors=True, with_head=False, loading_info=info)
        model.eval()
        expected = load_file(out / key / EXPECTED)["output"]
        difference = (output(model, case) - expected).abs().max().item()
        worst = max(worst, difference)
        missing = [k for k in info.get("missing_keys", []) if ".ours." in k]
        assert not missing, (key, info)
        assert not info.get("unexpected_keys"), (key, info)
        assert torch.allclose(output(model, case), expected, rtol=1e-5, atol=1e-5), (key, difference)
        print(f"{key}: {difference:.1e}")
    print(f"{len(CASES)} adapters, largest difference {worst:.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "make":
        make()
    else:
        {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
