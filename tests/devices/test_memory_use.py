from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from afina.devices import memory_use as memory


@pytest.fixture
def gpu(monkeypatch):
    """What torch would answer for a GPU."""
    reset = []
    for name, value in {"mem_get_info": (60, 100), "memory_reserved": 30, "memory_allocated": 10,
                        "max_memory_allocated": 25}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    return reset


@pytest.mark.parametrize("device", ["cuda:1", torch.device("cuda:1")])
def test_a_gpu_is_asked_for_its_own_memory(gpu, device):
    assert memory.used_bytes(device) == 30
    assert memory.free_bytes(device) == 60 + 30 - 10  # what torch holds and does not use is free for it
    assert memory.peak_bytes(device) == 25
    memory.reset_peak(device)
    assert gpu == [device]


def test_a_processor_has_the_machines_memory_and_the_processs_own(gpu):
    kib = memory.resident_kib()
    block = torch.ones(2**24)
    assert memory.used_bytes("cpu") - kib * 1024 > 0.9 * block.nbytes
    assert memory.peak_bytes("cpu") >= memory.used_bytes("cpu") * 0.99
    assert 0 < memory.free_bytes("cpu") < memory.total_bytes()
    memory.reset_peak("cpu")
    assert not gpu


def test_a_device_that_keeps_no_record_has_no_free_memory_to_tell():
    assert memory.free_bytes("meta") is None


HEAPS = """
import ctypes, sys, threading
from afina.devices.memory_use import one_heap
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
if sys.argv[2] == "one":
    one_heap()
for _ in range(2):
    thread = threading.Thread(target=lambda: libc.malloc(1000))
    thread.start()
    thread.join()
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps of other C libraries are not counted")
def test_threads_have_heaps_of_their_own_unless_all_are_to_have_one(tmp_path):
    found = {}
    for how in ("own", "one"):
        subprocess.run([sys.executable, "-c", HEAPS, str(tmp_path / how), how], check=True)
        found[how] = (tmp_path / how).read_text().count("<heap nr=")
    assert found["own"] > found["one"] == 1


def in_buffers() -> int:
    """Bytes that MKL keeps for the next product."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    if not hasattr(library, "mkl_serv_mem_stat"):
        pytest.skip("torch without MKL")
    library.mkl_serv_mem_stat.restype = ctypes.c_int64
    return int(library.mkl_serv_mem_stat(ctypes.byref(ctypes.c_int())))


def test_buffers_of_products_are_given_back_and_products_are_what_they_were():
    memory.free_thread_buffers()
    before, x = in_buffers(), torch.randn(700, 700)
    product = x @ x
    assert (held := in_buffers()) > before
    memory.free_thread_buffers()
    assert in_buffers() < held
    assert torch.equal(x @ x, product)


def test_c_libraries_without_these_functions_have_nothing_to_do(monkeypatch):
    memory._thread_buffers.cache_clear()
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.one_heap()
    memory.trim()
    memory.free_thread_buffers()
    assert memory._thread_buffers() is None
    memory._thread_buffers.cache_clear()
