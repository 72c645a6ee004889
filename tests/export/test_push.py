"""What is uploaded, and what is said where the hub does not take it; the hub is a double."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afina.errors import CheckpointError, ConfigError
from afina.export.push import check_repository, listed, push


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.bin").write_bytes(b"12345")
    (tmp_path / "a.txt").write_text("x")
    return tmp_path


class Double:
    """A hub that keeps what it is given, or fails."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.made, self.files = fault, {}, {}

    def __call__(self) -> Double:
        return self

    def create_repo(self, **options: Any) -> str:
        if self.fault is not None:
            raise self.fault
        self.made = options
        return f"https://hub/{options['repo_id']}"

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.files = dict(listed(folder_path))


def test_every_file_is_uploaded_into_the_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Double()
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    assert push(folder, "me/it", private=True) == "https://hub/me/it"
    assert hub.made == {"repo_id": "me/it", "private": True, "exist_ok": True}
    assert hub.files == {"a.txt": 1, "deep/b.bin": 5}


def test_a_hub_that_cannot_be_reached_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Double(OSError("no route\nto host")))
    with pytest.raises(CheckpointError, match="did not take it") as told:
        push(folder, "me/it")
    assert "no route" in str(told.value)
    assert len(str(told.value).splitlines()) <= 4


@pytest.mark.parametrize("name", ["it", "a/b/c", "/a/b", "a b/c", "../a"])
def test_names_that_are_none_of_the_hub_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no name of a repository"):
        check_repository(name)
    check_repository("me/it-2.0")
