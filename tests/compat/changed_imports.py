"""Users' scripts in which only the import line was changed, run in processes of their own."""

from __future__ import annotations

import json
import os
import re
import site
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
Done = subprocess.CompletedProcess[str]
LIBRARIES = (
    "import transformers.trainer, trl.trainer.sft_trainer, trl.trainer.dpo_trainer, trl.trainer.reward_trainer, "
    "trl.trainer.grpo_trainer, accelerate, diffusers.loaders, diffusers.models, sentence_transformers"
)
"""Everything that looks for `peft` when it is imported."""


def changed(source: str) -> str:
    """The script with afina's name in its import lines, and nothing else."""
    return re.sub(r"^(\s*)from peft\b", r"\1from afina", source, flags=re.MULTILINE)


def scenarios_in(folder: Path) -> Path:
    """`benchmarks.scenarios`, changed, in a folder."""
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks/__init__.py").touch()
    for name in ("scenarios", "models", "loading", "toys"):
        text = changed((ROOT / f"benchmarks/{name}.py").read_text(encoding="utf-8"))
        (folder / f"benchmarks/{name}.py").write_text(text, encoding="utf-8")
    return folder


def packages_without_peft(folder: Path) -> Path:
    """The installed packages, but for `peft`."""
    # Libraries tell by this name what is installed.
    folder = folder / "site-packages"
    folder.mkdir()
    for place in site.getsitepackages():
        for entry in Path(place).iterdir():
            if not entry.name.startswith(("peft", "__")) and entry.suffix != ".pth":
                (folder / entry.name).symlink_to(entry)
    return folder


def run_code(
    code: str, packages: Path | None, *paths: Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run code on all installed packages, or on those of a folder."""
    before = [] if packages is None else ["-S"]
    where = [*paths, ROOT / "src", *([] if packages is None else [packages])]
    environment = {k: v for k, v in os.environ.items() if k != "AFINA_STAND_IN"}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, where)), "OMP_NUM_THREADS": "1",
                    "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    return subprocess.run([sys.executable, *before, "-c", code], capture_output=True, text=True, check=False,
                          env=environment, cwd=cwd)  # fmt: skip


def scenario(name: str, folder: Path, packages: Path | None) -> tuple[dict[str, float], str]:
    """The numbers of a changed scenario whose libraries were imported first, and what it said."""
    code = f"""
{LIBRARIES}
import json, tempfile, torch
from pathlib import Path
torch.set_num_threads(1)
from benchmarks.scenarios import SCENARIOS
with tempfile.TemporaryDirectory() as folder:
    print("RESULT " + json.dumps(SCENARIOS[{name!r}](Path(folder))))
"""
    done = run_code(code, packages, folder, cwd=folder)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(lines[-1].removeprefix("RESULT ")), done.stderr
