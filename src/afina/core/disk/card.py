"""The model card: README.md beside an adapter."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from ..config import FORMAT_VERSION, PeftConfig
from ..files.jsonfile import write_bytes

_MARK = "<!-- written by afina; text below this line is replaced -->"


def write_card(folder: Path, config: PeftConfig, counts: tuple[int, int]) -> None:
    """Write or renew README.md; front matter and text of the user's own are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "README.md"
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    kept = old.split(_MARK)[0].rstrip() if old else _front_matter(config)
    write_bytes(path, f"{kept}\n\n{_MARK}\n{_body(config, counts)}".encode())


def _front_matter(config: PeftConfig) -> str:
    base = config.base_model_name_or_path
    lines = ["---"]
    if base and not Path(base).is_absolute():
        lines.append(f"base_model: {json.dumps(base)}")
    lines += ["library_name: peft", "tags:", f"- {str(config.peft_type).lower()}", "- afina"]
    if base and not Path(base).is_absolute():
        lines.insert(-1, f"- {json.dumps(f'base_model:adapter:{base}')}")
    task = getattr(config.task_type, "value", None)
    if task == "CAUSAL_LM":
        lines.append("pipeline_tag: text-generation")
    return "\n".join([*lines, "---", "", "# Adapter"])


def _body(config: PeftConfig, counts: tuple[int, int]) -> str:
    base = config.base_model_name_or_path or "the base model"
    trainable, total = counts
    return f"""
A {config.peft_type} adapter for `{base}`: {trainable:,} trained parameters on {total - trainable:,}.

```python
from afina import PeftModel  # or: from peft import PeftModel
model = PeftModel.from_pretrained(base_model, "path/of/this/folder")
```

File format: 🤗 PEFT {FORMAT_VERSION}.
"""


def origin(model: nn.Module) -> str | None:
    """Where a model was loaded from: a hub id or a folder."""
    config = getattr(model, "config", None)
    return getattr(config, "_name_or_path", None) or getattr(model, "name_or_path", None) or None
