"""What the documents say is what the code does."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")

CHECK_EXAMPLE = """
import importlib.util, sys, torch
from torch import nn
import afina
afina.PeftType.LORA  # every method file is imported by now
name = "afina.methods.additive.output_shift"
spec = importlib.util.spec_from_file_location(name, sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
torch.manual_seed(0)
base = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3))
x, y = torch.randn(16, 6), torch.randn(16, 3)
before = base(x).detach()
model = afina.get_peft_model(base, afina.config_class("output_shift")(target_modules=["0", "2"]))
assert torch.equal(model(x), before)
assert model.get_nb_trainable_parameters()[0] == 5 + 3
first = last = nn.functional.mse_loss(model(x), y)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
for _ in range(50):
    optimizer.zero_grad()
    last.backward()
    optimizer.step()
    last = nn.functional.mse_loss(model(x), y)
assert last < 0.95 * first, (first, last)
trained = model(x).detach()
model.save_pretrained(sys.argv[2])
model.merge_adapter()
assert torch.allclose(model(x), trained, atol=1e-6)
again = afina.PeftModel.from_pretrained(model.unload(), sys.argv[2])
assert torch.equal(again(x), trained)
print("works")
"""


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def written_as_it_is(script: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether what a script writes is there already."""
    monkeypatch.setattr(sys, "argv", [script, "--check"])
    return importlib.import_module(f"scripts.{script}").main() == 0


def test_methods_page_is_what_the_registry_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written_as_it_is("methods_table", monkeypatch), "run: python scripts/methods_table.py"


def test_conversations_page_is_what_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written_as_it_is("conversations_page", monkeypatch), "run: python scripts/conversations_page.py"


def test_page_of_learning_rates_is_what_was_measured_and_what_the_methods_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written_as_it_is("rates_page", monkeypatch), "run: python scripts/rates_page.py"


@pytest.mark.whole("models of 70 billion numbers, without data")
def test_table_of_engines_is_what_the_plan_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written_as_it_is("engines_table", monkeypatch), "run: python scripts/engines_table.py"


def test_api_page_and_stub_are_what_the_docstrings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written_as_it_is("api_page", monkeypatch), "run: python scripts/api_page.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = [t for t in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in t]
    assert not [t for t in targets if not (page.parent / t).exists()]


def test_example_of_contributing_is_a_working_method(tmp_path: Path) -> None:
    example = blocks("CONTRIBUTING.md", "python")[0]
    said = re.search(r"whole file, (\d+) lines", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert said is not None
    assert len(example.splitlines()) == int(said[1])
    file = tmp_path / "output_shift.py"
    file.write_text(example, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", CHECK_EXAMPLE, file, tmp_path / "adapter"], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "works", done.stderr


def test_api_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ..core.tiny import llama

    llama().save_pretrained(tmp_path / "model")
    (snippet,) = blocks("README.md", "python")
    changed = snippet.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "model")
    assert changed != snippet
    monkeypatch.chdir(tmp_path)
    exec(compile(changed, "README.md", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
