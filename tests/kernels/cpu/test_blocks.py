"""Memory of tensors on processors: the place of a freed one serves the next one of its size."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from afina.kernels.cpu import blocks

_HOLES = """
import sys, torch
from afina.devices.memory_use import resident_kib, trim
from afina.kernels.cpu import blocks
if sys.argv[1] == "ours":
    assert blocks.use() == ""
    assert blocks.use() == ""
torch.set_num_threads(1)
warm = torch.ones(3, 2**22)  # mapped, and gone: from here on such blocks lie in the heap
del warm
trim()
before, kept, small = resident_kib(), [], []
for _ in range(60):
    gone = torch.ones(2**18)
    small.append([torch.ones(4) for _ in range(20)])
    kept.append(torch.ones(2**18 - 4096))
    del gone
    assert kept[-1].data_ptr() % 64 == small[-1][0].data_ptr() % 64 == 0
again = [torch.ones(2**18) for _ in range(60)]
print(round((resident_kib() - before) / 1024))
assert torch.empty(0).data_ptr() == 0
assert torch.stack(kept).sum().item() == 60 * (2**18 - 4096)
try:
    torch.empty(2**50)
except RuntimeError as error:
    print(str(error).splitlines()[0])
"""


def held(which: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", _HOLES, which], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_what_a_freed_tensor_leaves_serves_the_next_one_of_its_size():
    if why := blocks.why_not():
        pytest.skip(why)
    (ours, refused), (torchs, _) = held("ours"), held("torch")
    assert int(ours) < int(torchs)
    assert "can't allocate memory" in refused


def test_where_they_cannot_be_had_it_is_said_why(monkeypatch):
    find = blocks._found.__wrapped__
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    assert find() == (None, "THP_MEM_ALLOC_ENABLE=1 asks for huge pages")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    monkeypatch.setattr(blocks.platform, "libc_ver", lambda: ("", ""))
    assert "GNU" in find()[1]
    monkeypatch.setattr(blocks, "_found", lambda: find())
    assert blocks.use() == blocks.why_not() != ""


def test_another_allocator_is_left_in_its_place(monkeypatch):
    class Other:
        def afina_use_blocks(self) -> int:
            return 0

    found: ctypes.CDLL | Other = Other()
    monkeypatch.setattr(blocks, "_found", lambda: (found, ""))
    assert blocks.use() == "another library gives torch its memory"
