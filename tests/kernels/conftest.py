"""Kernels in C++: tests of them are skipped where they cannot be had; others run with them and without."""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import pytest
import torch

from afina.kernels.cpu import native
from afina.kernels.cuda import few_bits
from afina.kernels.updates import joint

WIDE, NARROW, ARM = native.PROCESSORS.values()
TARGETS = {
    "x86_64": {
        "AVX-512 with bfloat16 products": ("AVX512", WIDE),
        "AVX-512": ("AVX512", (*WIDE, "-mno-avx512bf16")),
        "AVX2": ("AVX2", NARROW),
    },
    "aarch64": {"NEON": ("DEFAULT", ARM)},
}
"""What the kernels are compiled for on a machine: the least that torch must use there, and the compiler's flags."""
HERE = TARGETS.get(platform.machine(), {})


def switch_off(patch: pytest.MonkeyPatch) -> None:
    for module in ("cpu.native.attention", "cpu.native.rowwise", "speed"):
        patch.setattr(f"afina.kernels.{module}.library", lambda: None)


@pytest.fixture
def writes_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes dequantises 4 bits into a given tensor on GPUs only; here it does everywhere."""
    functional = pytest.importorskip("bitsandbytes").functional
    own = functional.dequantize_4bit

    def dequantize(codes: torch.Tensor, state: object, out: torch.Tensor | None = None, **more: object) -> torch.Tensor:
        if out is None or codes.is_cuda:
            return own(codes, state, out=out, **more)
        return out.copy_(own(codes, state, **more))

    monkeypatch.setattr(functional, "dequantize_4bit", dequantize)


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where every dequantised weight lay."""
    seen, own = list[int](), few_bits.Buffer.of

    def noted(self: few_bits.Buffer, *args: Any) -> torch.Tensor:
        out = own(self, *args)
        seen.append(out.data_ptr())
        return out

    monkeypatch.setattr(few_bits.Buffer, "of", noted)
    return seen


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers each joint operation for rows had."""
    seen, own = list[int](), joint.lora_linears

    def noted(x: torch.Tensor, layers: list[joint.Layer], room: Any) -> Any:
        seen.extend([len(layers)] if layers[0].rows is not None else [])
        return own(x, layers, room)

    monkeypatch.setattr(joint, "lora_linears", noted)
    return seen


@pytest.fixture
def native_library() -> None:
    there(native._found())


def there(found: tuple[ctypes.CDLL | None, str]) -> ctypes.CDLL:
    library, why = found
    if "could not compile" in why:
        pytest.fail(why)
    return library or pytest.skip(f"no native kernels: {why}")


@pytest.fixture(params=HERE)
def each_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernels as compiled for every set of instructions that the processor has."""
    (least, flags), uses = HERE[request.param], torch.backends.cpu.get_cpu_capability()
    if least not in ("DEFAULT", uses) and (least, uses) != ("AVX2", "AVX512"):
        pytest.skip(f"torch uses {uses} here, not {least}")
    library = there(native._found(flags))
    monkeypatch.setattr(native, "library", lambda: library)
    for module in ("attention", "rowwise"):
        monkeypatch.setattr(f"afina.kernels.cpu.native.{module}.library", lambda: library)
    if native.instructions() != request.param:
        pytest.skip(f"this processor has {native.instructions()}")
    return request.param


@pytest.fixture(params=["native", "torch"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether native kernels serve; the test runs both ways."""
    if request.param == "torch":
        switch_off(monkeypatch)
        return False
    request.getfixturevalue("native_library")
    return True
