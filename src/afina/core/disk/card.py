"""The model card: README.md beside an adapter."""

from __future__ import annotations

import json
import re
from pathlib import Path

from torch import nn

from ..config import FORMAT_VERSION, PeftConfig
from ..files.jsonfile import write_bytes

_MARK = "<!-- written by afina; text below this line is replaced -->"


def write_card(folder: Path, config: PeftConfig, counts: tuple[int, int]) -> None:
    """Write or renew README.md; front matter and text of the user's own are kept, what the front matter lacks is
    added."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "README.md"
    old = path.read_text(encoding="utf-8") if path.is_file() else "# Adapter"
    kept = _with_front_matter(old.split(_MARK)[0].rstrip(), config)
    write_bytes(path, f"{kept}\n\n{_MARK}\n{_body(config, counts)}".encode())


def complete_card(path: Path, config: PeftConfig) -> None:
    """Add to a README.md what its front matter lacks of what the hub wants to know."""
    old = path.read_text(encoding="utf-8")
    new = _with_front_matter(old, config)
    if new != old:
        write_bytes(path, new.encode())


def _with_front_matter(text: str, config: PeftConfig) -> str:
    found = re.match(r"---\n(.*?)^---$", text, re.DOTALL | re.MULTILINE)
    there = found[1] if found else ""
    missing = [block for key, block in _wanted(config).items() if not re.search(rf"^{key}\s*:", there, re.MULTILINE)]
    if found is None:
        return "\n".join(["---", *missing, "---", "", text])
    return "".join(["---\n", there, *(f"{block}\n" for block in missing), "---", text[found.end() :]])


def _wanted(config: PeftConfig) -> dict[str, str]:
    """Key of the front matter -> its lines."""
    base = config.base_model_name_or_path
    named = base and not Path(base).is_absolute()
    of_base = [f"- {json.dumps(f'base_model:adapter:{base}')}"] if named else []
    out = {"base_model": f"base_model: {json.dumps(base)}"} if named else {}
    out["library_name"] = "library_name: peft"
    out["tags"] = "\n".join(["tags:", f"- {str(config.peft_type).lower()}", *of_base, "- afina"])
    if getattr(config.task_type, "value", None) == "CAUSAL_LM":
        out["pipeline_tag"] = "pipeline_tag: text-generation"
    return out


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
