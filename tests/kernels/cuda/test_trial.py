"""A kernel serves where a trial finds it right and faster; that is asked once for a device and version."""

from __future__ import annotations

import json

import pytest
import torch

from afina.kernels.cuda import trial

CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A device that answers as a GPU would; the kernels are torch's operations, and twice as fast."""
    facts = {"device": "NVIDIA H100", "capability": "(9, 0)", "torch": "2"}
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path))
    monkeypatch.setattr(trial, "_where", lambda device: dict(facts))
    monkeypatch.setattr(trial.rowwise, "is_installed", lambda: True)
    monkeypatch.setattr(trial, "milliseconds", lambda runs, device: [1.0, 2.0])
    monkeypatch.setattr(trial, "_CASES", {name: (plain, plain, tuple((4, *s[1:]) for s in shapes))
                                          for name, (_, plain, shapes) in trial._CASES.items()})  # fmt: skip
    trial._known.cache_clear()
    yield facts
    trial._known.cache_clear()


def why(operation="norms", dtype=torch.float32):
    return trial.why_not(operation, torch.device("cpu", 0), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operation", trial._CASES)
def test_a_kernel_that_is_right_and_faster_serves(operation, dtype, gpu):
    assert why(operation, dtype) == ""


@pytest.mark.parametrize("operation", trial._CASES)
@pytest.mark.parametrize("place", [0, -1])
def test_a_kernel_whose_output_or_gradient_is_another_does_not(operation, place, gpu, monkeypatch):
    _, plain, shapes = trial._CASES[operation]

    def wrong(*inputs):
        out = list(plain(*inputs))
        out[place] = out[place] * 1.01
        return out

    monkeypatch.setitem(trial._CASES, operation, (wrong, plain, shapes))
    assert why(operation).startswith("it is not its formula here: off by 0.01")


def test_a_kernel_that_gives_no_numbers_does_not(gpu, monkeypatch):
    _, plain, shapes = trial._CASES["norms"]
    monkeypatch.setitem(trial._CASES, "norms", (lambda *i: [t * float("nan") for t in plain(*i)], plain, shapes))
    assert why().startswith("it is not its formula here: off by nan")


def test_a_kernel_that_is_no_faster_does_not(gpu, monkeypatch):
    monkeypatch.setattr(trial, "milliseconds", lambda runs, device: [2.0, 2.0])
    assert why() == "it is no faster here: 2 ms for torch's 2 ms"


def test_without_the_package_nothing_is_tried(gpu, monkeypatch):
    monkeypatch.setattr(trial.rowwise, "is_installed", lambda: False)
    monkeypatch.setattr(trial, "tried", lambda *a: pytest.fail("tried"))
    assert why() == "liger-kernel is not installed (pip install 'afina[gpu]')"


def test_the_outcome_is_kept_by_device_dtype_and_versions(gpu, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(trial, "tried", lambda operation, device, dtype: asked.append(dtype) or "too slow")
    for _ in range(2):
        trial._known.cache_clear()  # another process
        assert why() == "too slow"
    assert asked == [torch.float32]
    (kept,) = tmp_path.glob("trials/*/outcome.json")
    assert json.loads(kept.read_text()) == {"operation": "norms", "dtype": "torch.float32", **gpu,
                                            "outcome": "too slow"}  # fmt: skip
    why(dtype=torch.bfloat16)
    gpu["torch"] = "3"
    trial._known.cache_clear()
    why()
    assert asked == [torch.float32, torch.bfloat16, torch.float32]


def test_what_could_not_be_tried_is_told_and_not_kept(gpu, monkeypatch, tmp_path):
    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(trial, "tried", fails)
    assert why() == "it does not run here (RuntimeError: out of memory)"
    assert not list(tmp_path.glob("trials/*/outcome.json"))
    trial._known.cache_clear()
    monkeypatch.setattr(trial, "tried", lambda *_: "")
    assert why() == ""


def test_a_cache_that_cannot_be_written_costs_a_trial_each_time(gpu, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path / "file"))
    asked = []
    monkeypatch.setattr(trial, "tried", lambda *_: asked.append(1) or "")
    for _ in range(2):
        trial._known.cache_clear()
        assert why() == ""
    assert len(asked) == 2
