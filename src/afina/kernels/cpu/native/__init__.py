"""Kernels in C++, compiled once by the system's compiler for the processor at hand: AVX-512, AVX2 or NEON.

The sources (`*.cpp`) come with afina. The first use compiles them for the instructions that torch uses here into the
cache; what comes out is found there again by the sources, the compiler and the processor. Who limits torch
(`ATEN_CPU_CAPABILITY`) limits them too. Threads are OpenMP's, of the library that torch brings. Where there is no such
processor or no compiler, `library` is None and `why_not` says why; every kernel has its torch formula beside it, which
then runs.
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
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import torch

from ....cache import cache_dir, make_once
from ....errors import AfinaError

FLAGS = ("-O2", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-ffp-contract=off")
PROCESSORS = MappingProxyType(
    {
        ("x86_64", "AVX512"): ("-march=native",),
        ("x86_64", "AVX2"): ("-march=native", "-mno-avx512f"),
        ("aarch64", None): ("-mcpu=native",),
    }
)
"""How the compiler is told of the instructions: by machine, and by torch's word for what it uses (None: any)."""
SWITCH = "AFINA_NATIVE"
"""Set to 0, this environment variable keeps to torch's own operations."""
DTYPES = MappingProxyType({torch.bfloat16: "bfloat16", torch.float32: "float32"})
"""What the kernels are made for, as their names end."""


def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had."""
    return _found()[0]


def why_not() -> str:
    """Why there is no library; empty where there is one."""
    return _found()[1]


def instructions() -> str:
    """What the kernels are compiled for, in words; empty where there is no library."""
    found = library()
    if found is None:
        return ""
    found.afina_instructions.restype = ctypes.c_char_p
    told: bytes = found.afina_instructions()
    return told.decode()


@functools.cache
def _found(target: tuple[str, ...] | None = None) -> tuple[ctypes.CDLL | None, str]:
    """The library, and why there is none.

    Args:
        target: flags for the compiler; those for the instructions that torch uses here if None.
    """
    machine, uses = platform.machine(), torch.backends.cpu.get_cpu_capability()
    target = target or PROCESSORS.get((machine, uses), PROCESSORS.get((machine, None)))
    here = Path(__file__).parent
    sources, headers = sorted(here.glob("*.cpp")), sorted(here.glob("*.h"))
    if target is None and sys.platform.startswith("linux") and os.environ.get(SWITCH) != "0":
        return None, f"they are for AVX-512, AVX2 and NEON, and torch uses {uses} on {machine} here"
    return compiled(sources, (*FLAGS, *(target or ())), "kernels.so", (), _processor(), headers=headers)


def compiled(
    sources: Sequence[Path], options: Sequence[str], name: str, end: Sequence[str] = (), known: str = "",
    headers: Sequence[Path] = (),
) -> tuple[ctypes.CDLL | None, str]:  # fmt: skip
    """A library of these sources, and why there is none; compiled once, and found again in the cache.

    Args:
        options: for the compiler.
        end: what follows the sources.
        known: what else it depends on.
        headers: files of ours that the sources read.
    """
    if os.environ.get(SWITCH) == "0":
        return None, f"{SWITCH}=0"
    if not sys.platform.startswith("linux"):
        return None, "they are compiled under Linux only"
    compiler = (
        shlex.split(os.environ.get("CXX", "")) or [c for c in (shutil.which("g++"), shutil.which("c++")) if c][:1]
    )
    if not compiler:
        return None, "there is no C++ compiler (g++)"
    # The C++ library is named, because CXX may be a compiler for C, which does not link it by itself.
    command = [*compiler, *options, *map(str, sources), *end, "-lstdc++"]
    texts = [path.read_bytes() for path in (*sources, *headers)]
    try:
        known += _output([*compiler, "--version"]) + repr([*compiler, *options, *end])
        return ctypes.CDLL(str(_built(command, name, [*texts, known.encode()]))), ""
    except subprocess.CalledProcessError as error:
        first = next((x for x in error.stderr.splitlines() if "error" in x), error.stderr[:100])
        return None, f"{compiler[0]} could not compile them ({first.strip()[:100]})"
    except (OSError, AfinaError) as error:
        return None, " ".join(str(error).split())[:200]


def _built(command: Sequence[str], name: str, parts: Sequence[bytes]) -> Path:
    """What a command makes, kept under what it is made of."""
    known = hashlib.sha256()
    for part in parts:
        known.update(hashlib.sha256(part).digest())

    def make(work: Path) -> None:
        _output([*command, "-o", str(work / name)])
        ctypes.CDLL(str(work / name))  # what cannot be loaded is not kept

    return make_once(cache_dir() / "native" / known.hexdigest()[:20], make) / name


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stdout


def _processor() -> str:
    """What the compiler looks at for its `native`."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    keys = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")
    return "\n".join(x for x in dict.fromkeys(lines) if x.startswith(keys))
