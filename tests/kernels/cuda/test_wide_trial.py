"""Products carry updates where a trial of the layers' sizes finds that right and faster; asked once."""

from __future__ import annotations

import pytest
import torch

from afina.kernels.cuda import trial, wide_trial
from afina.kernels.cuda.wide import ADDED, Way

SIZES = ((12, 6), 8, (2, 3))
CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A device that answers as a GPU would, for which products are faster forward only."""
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path))
    monkeypatch.setattr(trial, "_where", lambda device: {"device": "NVIDIA H100"})
    times = iter([[1.0, 2.0], [2.0, 1.0]])
    monkeypatch.setattr(wide_trial, "milliseconds", lambda runs, device: ([run() for run in runs], next(times))[1])
    wide_trial._known.cache_clear()
    yield tmp_path
    wide_trial._known.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_direction_is_asked_by_itself_and_once(gpu, dtype):
    for _ in range(2):
        assert wide_trial._known(SIZES, 64, dtype, CPU) == Way(True, False)
        wide_trial._known.cache_clear()  # another process
    assert len(list(gpu.glob("trials/*/outcome.json"))) == 1


def test_what_is_wrong_is_not_carried_however_fast(gpu, monkeypatch):
    own = wide_trial.layer_outputs

    def wrong(*args):
        out, t = own(*args)
        return [y * (1.01 if args[-1] is not None else 1) for y in out], t

    monkeypatch.setattr(wide_trial, "layer_outputs", wrong)
    assert wide_trial._known(SIZES, 64, torch.float32, CPU) == ADDED


def test_what_cannot_be_tried_is_added_and_not_kept(gpu, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(wide_trial, "tried", fails)
    assert wide_trial._known(SIZES, 64, torch.float32, CPU) == ADDED
    assert not list(gpu.glob("trials/*/outcome.json"))


def test_processors_are_not_asked(monkeypatch):
    monkeypatch.setattr(wide_trial, "_known", lambda *_: pytest.fail("asked"))
    assert wide_trial.way([torch.ones(4, 4)], [2], 8) == ADDED
