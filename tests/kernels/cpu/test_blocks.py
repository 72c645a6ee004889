"""Memory of tensors on processors: the place of a freed one serves the next one of its size."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from afina.kernels.cpu import blocks

_HOLES = """
import ctypes, sys, torch
from afina.kernels.cpu import blocks
if sys.argv[1] == "ours":
    assert blocks.use() == ""
    assert blocks.use() == ""
torch.set_num_threads(1)
warm = torch.ones(2**22)  # 16 MiB mapped, and gone: from here on such blocks lie in the heap (above 32 they would not)
del warm
malloc, kept, served = ctypes.CDLL(None).malloc, [], 0
for number in range(60):
    gone = torch.ones(2**18)
    malloc(2**20 + 16 * number)  # what lies behind it begins at any multiple of 16 bytes
    for _ in range(500):  # small blocks settle at its ends
        malloc(24)
    place = gone.data_ptr()
    del gone
    kept.append(torch.ones(2**18))
    served += kept[-1].data_ptr() == place
    assert kept[-1].data_ptr() % 64 == torch.ones(4).data_ptr() % 64 == 0
print(served)
assert torch.empty(0).data_ptr() == 0
assert torch.stack(kept).sum().item() == 60 * 2**18
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
    assert int(ours) == 60
    assert int(torchs) < 60  # only where it happens to begin and end at multiples of 64
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
