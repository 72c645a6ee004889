"""Kernels in C++ for processors with bfloat16 products (AVX-512 BF16), compiled once by the system's compiler.

The sources (`*.cpp`) come with afina. The first use compiles them for this processor into the cache; what comes out is
found there again by the sources, the compiler and the processor. Threads are OpenMP's, of the library that torch
brings. Where there is no such processor or no compiler, `library` is None and `why_not` says why; every kernel has its
torch formula beside it, which then runs.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ....cache import cache_dir, make_once
from ....errors import AfinaError

FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-ffp-contract=off")
SWITCH = "AFINA_NATIVE"
"""Set to 0, this environment variable keeps to torch's own operations."""


def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had."""
    return _found()[0]


def why_not() -> str:
    """Why there is no library; empty where there is one."""
    return _found()[1]


@functools.cache
def _found() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get(SWITCH) == "0":
        return None, f"{SWITCH}=0"
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return None, "they are for x86 processors under Linux"
    has: Any = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    if not has():
        return None, "the processor has no bfloat16 products of AVX-512"
    compiler = (
        shlex.split(os.environ.get("CXX", "")) or [c for c in (shutil.which("g++"), shutil.which("c++")) if c][:1]
    )
    if not compiler:
        return None, "there is no C++ compiler (g++)"
    try:
        return ctypes.CDLL(str(_built(compiler))), ""
    except subprocess.CalledProcessError as error:
        first = next((x for x in error.stderr.splitlines() if "error" in x), error.stderr[:100])
        return None, f"{compiler[0]} could not compile them ({first.strip()[:100]})"
    except (OSError, AfinaError) as error:
        return None, " ".join(str(error).split())[:200]


def _built(compiler: list[str]) -> Path:
    """The compiled library of these sources, this compiler and this processor."""
    here = Path(__file__).parent
    sources = sorted(here.glob("*.cpp"))
    version = _output([*compiler, "--version"])
    known = hashlib.sha256()
    for part in (*(p.read_bytes() for p in (*sources, *sorted(here.glob("*.h")))), repr((compiler, FLAGS)).encode(),
                 version.encode(), _processor().encode()):  # fmt: skip
        known.update(hashlib.sha256(part).digest())
    name = "kernels.so"

    def make(work: Path) -> None:
        _output([*compiler, *FLAGS, *map(str, sources), "-o", str(work / name)])
        ctypes.CDLL(str(work / name))  # what cannot be loaded is not kept

    return make_once(cache_dir() / "native" / known.hexdigest()[:20], make) / name


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stdout


def _processor() -> str:
    """What `-march=native` looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(x for x in dict.fromkeys(lines) if x.startswith(("vendor_id", "cpu family", "model", "flags")))
