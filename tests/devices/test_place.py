"""The choice of a device, tried on machines that are not there: `Device` is all that the choice looks at."""

from __future__ import annotations

import pytest

from afina.devices.found import Device
from afina.devices.place import FLASH, TORCH, VARLEN, apart, attention, packed_attention, place, scales_loss, told
from afina.errors import RecipeError

GIB = 2**30
CPU = Device("cpu", "a processor", 64 * GIB, 32 * GIB, None)
H100 = Device("cuda:0", "NVIDIA H100", 80 * GIB, 78 * GIB, True, (9, 0))
SECOND = Device("cuda:1", "NVIDIA H100", 80 * GIB, 78 * GIB, True, (9, 0))
T4 = Device("cuda:0", "Tesla T4", 15 * GIB, 14 * GIB, False, (7, 5))
ARC = Device("xpu:0", "Arc A770", 16 * GIB, 15 * GIB, True)
M1 = Device("mps", "Apple GPU", 10 * GIB, 9 * GIB, False)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.mark.parametrize(
    ("there", "wanted", "name"),
    [
        ([CPU], "auto", "cpu"),
        ([H100, SECOND, CPU], "auto", "cuda:0"),
        ([H100, SECOND, CPU], "cuda", "cuda:0"),
        ([H100, SECOND, CPU], "cuda:1", "cuda:1"),
        ([H100, SECOND, CPU], "cpu", "cpu"),
        ([ARC, CPU], "auto", "xpu:0"),
        ([M1, CPU], "auto", "mps"),
        ([M1, CPU], "mps", "mps"),
    ],
)
def test_the_wanted_device_is_taken_and_auto_is_the_first_that_is_no_processor(there, wanted, name):
    assert place(wanted, there=there).name == name


@pytest.mark.parametrize(("there", "wanted"), [([CPU], "cuda"), ([H100, CPU], "cuda:1"), ([H100, CPU], "mps")])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(there, wanted):
    with pytest.raises(RecipeError, match="not there") as caught:
        place(wanted, there=there)
    assert all(f"{d.name} ({d.title})" in str(caught.value) for d in there)


@pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:x", "cpu:1", "", "cuda:0 "])
def test_a_word_that_is_no_device_is_refused(word):
    with pytest.raises(RecipeError, match="no such device"):
        place(word, there=[H100, CPU])


def test_processes_that_were_started_together_take_a_device_each(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert place("auto", there=[H100, SECOND, CPU]).name == "cuda:1"
    assert place("cuda", there=[H100, SECOND, CPU]).name == "cuda:1"
    assert place("cuda:0", there=[H100, SECOND, CPU]).name == "cuda:0"


def test_processes_have_a_device_each_or_the_processor_for_all(monkeypatch):
    monkeypatch.setattr("afina.devices.place.found", lambda: (H100, SECOND, CPU))
    assert apart("auto", 2, "--parallel") == apart("cuda", 2, "--parallel") == ["cuda:0", "cuda:1"]
    assert apart("cpu", 3, "--parallel") == ["cpu"] * 3
    for wanted, there in (("auto", "at most 2: cuda:0, cuda:1"), ("cuda:1", "at most 1: cuda:1")):
        with pytest.raises(RecipeError, match=f"--parallel.*\n.*\n?.*{there}"):
            apart(wanted, 3, "--parallel")


def test_what_does_not_fit_goes_elsewhere_only_where_the_choice_is_open():
    there = [T4, CPU]
    assert place("auto", needs=14 * GIB, there=there) is T4
    assert place("auto", needs=15 * GIB, there=there) is CPU
    assert place("cuda", needs=15 * GIB, there=there) is T4


@pytest.mark.parametrize(
    ("device", "half"), [(H100, "bfloat16"), (T4, "float16"), (ARC, "bfloat16"), (M1, "float32"), (CPU, "bfloat16")]
)
def test_sixteen_bits_are_those_that_the_device_computes_in(device, half):
    assert device.half == half


def test_the_loss_is_scaled_in_float16_on_gpus_that_can():
    assert scales_loss(T4, "float16")
    assert not any(scales_loss(d, t) for d, t in [(T4, "float32"), (H100, "bfloat16"), (CPU, "float16")])


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "name"),
    [
        (H100, "bfloat16", True, FLASH), (H100, "float16", True, FLASH), (H100, "bfloat16", False, TORCH),
        (H100, "float32", True, TORCH), (T4, "float16", True, TORCH), (CPU, "bfloat16", True, TORCH),
        (ARC, "bfloat16", True, TORCH),
    ],
)  # fmt: skip
def test_flash_attention_is_for_16_bits_on_ampere_and_newer_with_its_package(device, dtype, installed, name):
    assert attention(device, dtype, has=lambda package: installed) == name


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "name"),
    [
        (H100, "bfloat16", {"flash_attn", "kernels", "torch.nn.attention.varlen"}, FLASH),
        (H100, "bfloat16", {"kernels", "torch.nn.attention.varlen"}, VARLEN), (H100, "float16", {"kernels"}, FLASH),
        (H100, "float16", {"torch.nn.attention.varlen"}, VARLEN), (H100, "bfloat16", set(), TORCH),
        (H100, "float32", {"flash_attn", "torch.nn.attention.varlen"}, TORCH),
        (T4, "float16", {"flash_attn", "torch.nn.attention.varlen"}, TORCH),
        (CPU, "bfloat16", {"flash_attn", "torch.nn.attention.varlen"}, TORCH),
    ],
)  # fmt: skip
def test_packed_rows_take_flash_attention_then_torchs_by_lengths_then_the_hubs(device, dtype, installed, name):
    assert packed_attention(device, dtype, has=installed.__contains__) == name


def test_this_torch_has_attention_by_lengths():
    assert packed_attention(H100, "bfloat16") in (FLASH, VARLEN)


def test_the_device_is_told_with_its_memory_and_what_stands_idle():
    assert told(H100, [H100, SECOND, CPU]) == (
        "cuda:0 (NVIDIA H100, 78.0 GiB free, 80.0 GiB in all); 1 more of its kind is not used"
    )
    assert told(Device("cpu", "x")) == "cpu (x)"
