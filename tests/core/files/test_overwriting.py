from __future__ import annotations

import os

import pytest

from afina.core.files.overwriting import refuse_overwriting
from afina.errors import ConfigError


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "weights").write_text("w")
    return folder


def outs(base):
    link = base.parent / "link"
    link.symlink_to(base)
    twin = base.parent / "twin"
    os.link(base / "weights", twin)
    return {
        "itself": base, "a link to it": link, "with dots": base / ".." / "base", "what holds it": base.parent,
        "a file of it": base / "weights", "a file of it by a link": link / "weights",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["itself", "a link to it", "with dots", "what holds it", "a file of it",
                                  "a file of it by a link"])  # fmt: skip
def test_output_that_would_replace_an_input_is_refused(base, name):
    with pytest.raises(ConfigError, match="would overwrite the base") as told:
        refuse_overwriting(outs(base)[name], {"the base": base}, "OUT")
    assert len(str(told.value).splitlines()) <= 4


def test_input_that_is_a_link_in_the_output_is_kept(base, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "base").symlink_to(base)
    with pytest.raises(ConfigError, match="would overwrite"):
        refuse_overwriting(out, {"the base": out / "base"}, "OUT")


def test_other_places_are_free(base, tmp_path):
    (tmp_path / "other").mkdir()
    for out in (tmp_path / "other", tmp_path / "new", base / "merged"):
        refuse_overwriting(out, {"the base": base, "no such file": tmp_path / "gone"}, "OUT")
