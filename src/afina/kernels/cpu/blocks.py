"""Memory of tensors on processors: what a freed one leaves serves the next one of its size.

torch asks the C library for blocks that begin at multiples of 64 bytes. GNU's looks for 96 bytes more than such a block
keeps and gives both ends back, where small blocks settle: what a freed tensor leaves no longer fits the next one of its
size, and the heap grows by holes. `blocks.cpp` asks for plain blocks. Numbers are the same; which memory they lie in is
all that differs. Compiled against torch's headers as `native` is, once.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from pathlib import Path

import torch

from .native import compiled


def why_not() -> str:
    """Why tensors keep torch's own blocks; empty where they need not."""
    return _found()[1]


def use() -> str:
    """Let all tensors that this process makes from now on have these blocks; why they do not, or nothing."""
    found, why = _found()
    if found is None:
        return why
    return "" if found.afina_use_blocks() else "another library gives torch its memory"


@functools.cache
def _found() -> tuple[ctypes.CDLL | None, str]:
    if platform.libc_ver()[0] != "glibc":
        return None, "it is GNU's C library whose heap has the holes"
    if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1":
        return None, "THP_MEM_ALLOC_ENABLE=1 asks for huge pages"
    home = Path(torch.__file__).parent
    options = ("-O2", "-std=c++20", "-shared", "-fPIC", f"-I{home / 'include'}")
    here = Path(__file__).with_suffix(".cpp")
    return compiled([here], options, "blocks.so", (f"-L{home / 'lib'}", "-lc10"), torch.__version__)
