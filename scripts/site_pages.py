"""What mkdocs asks while it builds the site (`make docs`): pages that lie outside of docs, and links between them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md",
           "CHANGELOG.md": "changelog.md"}  # fmt: skip
"""Files of the root -> pages of the site."""
FOLDERS = {"adr": "adr/index.md", "results": "results/README.md"}
"""Folders that pages link to -> the page that stands for them."""
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)((?:#[^)\s]*)?)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside, and the data that pages link to."""
    from mkdocs.structure.files import File

    for name, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=from_root((ROOT / name).read_text(encoding="utf-8"))))
    files.append(File.generated(config, FOLDERS["adr"], content=decisions()))
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        files.append(File.generated(config, f"measured/{path.name}", abs_src_path=str(path)))
    return files


def decisions() -> str:
    """The decisions by their titles."""
    pages = sorted((ROOT / "docs" / "adr").glob("*.md"))
    titles = [path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for path in pages]
    return "\n".join(["# Decisions", "", *(f"- [{t}]({p.name})" for t, p in zip(titles, pages, strict=True)), ""])


def on_page_markdown(markdown: str, page: Any, **more: Any) -> str:
    """Links out of docs lead to where the files are on the site."""
    return _LINK.sub(lambda m: f"]({_moved(m[1])}{m[2]})", markdown)


def from_root(text: str) -> str:
    """A page of the root with its links as they are seen from docs."""
    return _LINK.sub(lambda m: f"]({m[1].removeprefix('docs/') if m[1] != 'docs/' else './'}{m[2]})", text)


def _moved(link: str) -> str:
    plain = link.removeprefix("../")
    if plain in OUTSIDE or plain.rstrip("/") in FOLDERS:
        return OUTSIDE.get(plain) or FOLDERS[plain.rstrip("/")]
    if plain.startswith("benchmarks/results/"):
        return plain.replace("benchmarks/results/", "measured/")
    return link
