from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from afina.core.files import jsonfile
from afina.core.files.jsonfile import publish
from afina.core.files.unwritable import check_place, told_if_unwritable
from afina.errors import CheckpointError


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def told(error):
    lines = str(error.value).splitlines()
    assert len(lines) <= 4
    return "\n".join(lines)


@pytest.mark.parametrize("point", ["mkstemp", "fsync", "replace", "chmod"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_save_that_cannot_be_written_is_told_and_leaves_what_was_there(tmp_path, monkeypatch, point, number):
    publish(tmp_path, {"a": b"old", "b": b"old"})

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(jsonfile.tempfile if point == "mkstemp" else jsonfile.os, point, fail)
        with pytest.raises(CheckpointError, match=os.strerror(number)) as error:
            publish(tmp_path, {"a": b"new!", "b": b"new!"})
    assert str(tmp_path) in told(error)
    assert "bytes free" in told(error)
    assert "expected: 8 bytes" in told(error)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old", "b": b"old"}


def test_full_disk_is_told_with_what_is_needed_and_free(small_disk):
    publish(small_disk, {"a": b"old"})
    with pytest.raises(CheckpointError, match="No space left") as error:
        publish(small_disk, {"a": bytes(1_000_000)})
    assert "expected: 1,000,000 bytes" in told(error)
    assert (small_disk / "a").read_bytes() == b"old"
    assert [path.name for path in small_disk.iterdir()] == ["a"]


@pytest.mark.parametrize("save", [torch.save, save_file], ids=["torch", "safetensors"])
def test_libraries_words_for_a_full_disk_are_understood(small_disk, save):
    big = {"a": torch.zeros(1_000_000)}
    with pytest.raises(CheckpointError, match="cannot write"), told_if_unwritable(small_disk, lambda: 4_000_000):
        save(big, small_disk / "a")


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "x"), RuntimeError("x"), PermissionError(13, "x", "/etc/x")])
def test_other_errors_go_their_way(tmp_path, error):
    with pytest.raises(type(error)) as got, told_if_unwritable(tmp_path):
        raise error
    assert got.value is error


@pytest.mark.parametrize("name", ["x" * 300, "x" * 240, "file/x", "file/x/y"])
def test_place_that_the_system_would_not_have_is_refused_before_the_work(tmp_path, name):
    (tmp_path / "file").write_text("here")
    with pytest.raises(CheckpointError, match="cannot write there") as caught:
        check_place(tmp_path / name)
    assert len(str(caught.value)) < 500
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no file system here that takes no files")
def test_place_on_a_file_system_that_takes_no_files_is_refused_before_the_work():
    with pytest.raises(CheckpointError, match=r"/proc/x: cannot write there"):
        check_place(Path("/proc/x"))


@pytest.mark.parametrize("name", ["file", "new", "new/below/that", "."])
def test_place_that_can_be_written_is_left_as_it_was(tmp_path, name):
    (tmp_path / "file").write_text("here")
    check_place(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "here"


def test_what_numpy_cannot_write_to_its_end_is_told(tmp_path):
    end = "cannot write: a file could not be written to its end"
    with pytest.raises(CheckpointError, match=end), told_if_unwritable(tmp_path):
        raise OSError("8288 requested and 7168 written")
    with pytest.raises(OSError, match="something else"), told_if_unwritable(tmp_path):
        raise OSError("something else")
