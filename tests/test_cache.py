"""What is made once into the cache."""

import pytest

from afina.cache import make_once


def test_make_once_leaves_nothing_behind_when_it_fails(tmp_path):
    def fail(work):
        (work / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_once(tmp_path / "c" / "t", fail)
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["t.lock"]


def test_what_is_there_needs_no_rights_to_write(tmp_path, monkeypatch):
    target = make_once(tmp_path / "t", lambda work: (work / "a").write_text("x"))
    monkeypatch.setattr("afina.cache._lock", None)
    assert make_once(tmp_path / "t", lambda work: None) == target


def test_made_files_have_the_rights_of_the_umask(tmp_path):
    def make(work):
        (work / "a").write_text("x")
        (work / "a").chmod(0o600)

    target = make_once(tmp_path / "t", make)
    (tmp_path / "plain").write_text("x")
    (tmp_path / "folder").mkdir()
    assert (target / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert target.stat().st_mode == (tmp_path / "folder").stat().st_mode
