"""Kernels in C++ give on an emulated ARM processor what they give here, where other tests hold them to formulas."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from afina.kernels.cpu import native

from ...conftest import HERE

CROSS = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
LIMITS = {"float32": 1e-6, "bfloat16": 1e-3}
SOURCES = Path(native.__file__).parent


def outputs(
    compiler: str, flags: tuple[str, ...], runs: list[str], program: Path
) -> dict[tuple[int, str, str], Tensor]:
    """What every kernel gives, by its place, name and dtype."""
    subprocess.run([compiler, *(f for f in native.FLAGS if f not in ("-shared", "-fPIC")), *flags, f"-I{SOURCES}",
                    *map(str, SOURCES.glob("*.cpp")), str(Path(__file__).with_name("all_kernels.cpp")), "-o",
                    str(program)], check=True, capture_output=True)  # fmt: skip
    lines = subprocess.run([*runs, program], check=True, capture_output=True, text=True).stdout.splitlines()
    found = enumerate(line.split() for line in lines)
    return {(i, name, dtype): torch.tensor([float(x) for x in all_]) for i, (name, dtype, *all_) in found}


@pytest.mark.whole
@pytest.mark.skipif(not (CROSS and EMULATOR), reason="there is no aarch64-linux-gnu-g++, or no qemu-aarch64")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="there is no x86 processor to compare with")
def test_every_kernel_gives_the_same_in_neon(tmp_path):
    if not shutil.which("g++"):
        pytest.skip("there is no C++ compiler (g++)")
    neon = outputs(str(CROSS), ("-static",), [str(EMULATOR)], tmp_path / "neon")
    here = outputs("g++", HERE["AVX2"][1], [], tmp_path / "here")
    assert neon.keys() == here.keys()
    assert len(here) == 41
    for key, expected in here.items():
        if key[1] == "powers":  # of -inf, NaN, 200, -200
            torch.testing.assert_close(neon[key], torch.tensor([0, torch.nan, torch.inf, 0]), equal_nan=True)
        else:
            assert 0 < float(expected.norm()) < torch.inf, key
            assert float((neon[key] - expected).norm() / expected.norm()) < LIMITS[key[2]], key
