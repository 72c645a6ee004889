"""The site's pages: what is generated is as the code says, what is translated does not fall behind."""

from __future__ import annotations

import hashlib
import re

import pytest
import yaml
from scripts import errors_page, site_pages

from afina.version import __version__

from .test_docs import LINK, PAGES, ROOT, written_as_it_is

DOCS = ROOT / "docs"
LANGUAGES, TRANSLATED = ("pt", "es", "tr"), ("index", "tutorial")
_BLOCK = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def test_page_of_errors_is_what_the_code_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written_as_it_is("errors_page", monkeypatch), "run: python scripts/errors_page.py"
    kinds = {one.kind for one in errors_page.raised()}
    assert {"CheckpointError", "ConfigError", "RecipeError", "DataError"} <= kinds


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("page", TRANSLATED)
def test_translations_are_of_the_english_page_as_it_is(language: str, page: str) -> None:
    english = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    own = (DOCS / language / f"{page}.md").read_text(encoding="utf-8")
    digest = hashlib.sha256(english.encode()).hexdigest()[:12]
    stamp = f"<!-- of docs/{page}.md {digest} -->"
    assert own.rstrip().endswith(stamp), f"translate what changed in docs/{page}.md, then end the page with {stamp}"
    assert _BLOCK.findall(own) == _BLOCK.findall(english)
    assert own.count("\n## ") == english.count("\n## ")


def test_every_page_has_its_place_on_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/-]+\.md", text.partition("\nnav:")[2]))
    here = {p.relative_to(DOCS).as_posix() for p in PAGES if DOCS in p.parents}
    outside = {*site_pages.OUTSIDE.values(), site_pages.FOLDERS["adr"]}
    assert named - outside <= here
    assert here - named <= {p for p in here if p.startswith(("adr/", "results/"))}
    assert yaml.safe_load(text)["strict"] is True


def test_links_to_files_outside_lead_to_where_the_site_has_them() -> None:
    assert (
        site_pages.from_root("[a](docs/speed.md#gpu) [b](https://x.y/docs/z)")
        == "[a](speed.md#gpu) [b](https://x.y/docs/z)"
    )
    moved = site_pages.on_page_markdown("[a](../README.md) [b](../benchmarks/results/gpu.json) [c](tune.md)", None)
    assert moved == "[a](readme.md) [b](measured/gpu.json) [c](tune.md)"
    links = {link for page in PAGES if page.parent == DOCS for link in LINK.findall(page.read_text(encoding="utf-8"))}
    known = ("../benchmarks/results/", *(f"../{name}" for name in site_pages.OUTSIDE))
    assert [link for link in links if link.startswith("../") and not link.startswith(known)] == []


def test_pages_name_no_machine() -> None:
    for path in DOCS.rglob("*.md"):
        assert not re.search(r"/(home|root|work|Users)/", path.read_text(encoding="utf-8")), path


def test_citation_is_of_this_version_and_licence() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert found["version"] == __version__
    assert found["license"] in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert {"cff-version", "message", "title", "authors"} <= found.keys()
