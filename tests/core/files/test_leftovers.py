from __future__ import annotations

import os
import subprocess
import sys

import pytest

from afina.core.files import leftovers
from afina.core.files.jsonfile import publish
from afina.errors import CheckpointError

KILLED = """
import os, signal, sys
from pathlib import Path
from afina.core.files import jsonfile
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
jsonfile.publish(Path(sys.argv[1]), {"a.bin": b"1" * 1000, "b.json": b"2"})
"""


def test_next_save_sweeps_what_killed_saves_left(tmp_path):
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
        assert done.returncode == -9
        assert len(list(tmp_path.iterdir())) == 1
    publish(tmp_path, {"a.bin": b"1", "b.json": b"2"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "b.json"]


def test_temporary_files_of_living_processes_stay(tmp_path):
    own = tmp_path / f"{leftovers.prefix('a')}x"
    parents = tmp_path / own.name.replace(f"-{os.getpid()}.", f"-{os.getppid()}.")
    elsewhere = tmp_path / f".a.00000000-{2**22 + 1}.x"
    others = [own, parents, elsewhere, tmp_path / ".a.former", tmp_path / ".ab.12345678-1.x", tmp_path / ".a.qwertyui"]
    for path in others:
        path.touch()
    leftovers.sweep(tmp_path, "a")
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_old_temporary_files_go_whoever_made_them(tmp_path):
    gone = [tmp_path / f".a.00000000-{2**22 + 1}.x", tmp_path / ".a.qwertyui"]
    kept = [tmp_path / ".a.former", tmp_path / ".a.json"]
    for path in gone + kept:
        path.touch()
        os.utime(path, (0, 0))
    leftovers.sweep(tmp_path, "a")
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_where_there_is_no_room_beside_an_output_it_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot write the model"):
        leftovers.room_beside(tmp_path / "file" / "out", "the model")
    work = leftovers.room_beside(tmp_path / "new" / "out", "the model")
    assert work.is_dir()
    assert work.parent == tmp_path / "new"
