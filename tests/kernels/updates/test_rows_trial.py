"""Rows go through their adapters in one product where a trial finds that faster, forward alone and with backward."""

from __future__ import annotations

import pytest
import torch

from afina.kernels.cuda import trial
from afina.kernels.updates import rows_trial
from afina.kernels.updates.rows_trial import Batch, Case, gains
from afina.kernels.updates.wide import ADD, CARRY, Way

SIZES = ((12, 6), 8, (5, 3))
"""Two layers with five and three columns, of all adapters together."""
CPU = torch.device("cpu")


@pytest.fixture
def times(monkeypatch, tmp_path):
    """Of a device that answers as a GPU would: together and apart, forward and with backward."""
    out = [[1.0, 2.0], [1.0, 2.0]]
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path))
    monkeypatch.setattr(trial, "_where", lambda device: {"device": "NVIDIA H100"})
    monkeypatch.setattr(rows_trial, "milliseconds",
                        lambda runs, device: ([run() for run in runs], out[torch.is_grad_enabled()])[1])  # fmt: skip
    gains.cache_clear()
    yield out
    gains.cache_clear()


@pytest.mark.parametrize("way", [Way(ADD, ADD), Way(CARRY, CARRY)])
@pytest.mark.parametrize("slow", [None, 0, 1])
def test_both_passes_have_to_gain(slow, way, times, monkeypatch):
    if slow is not None:
        times[slow] = [2.0, 2.0]
    case = Case(SIZES, 32, 2, torch.float32, CPU, way)
    assert gains(case) == (slow is None)
    gains.cache_clear()  # another process
    monkeypatch.setattr(rows_trial, "tried", lambda *_: pytest.fail("asked again"))
    assert gains(case) == (slow is None)
    with pytest.raises(pytest.fail.Exception):
        gains(case._replace(magnified=True))


def test_what_cannot_be_tried_goes_one_after_the_other(times, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(rows_trial, "tried", fails)
    assert not gains(Case(SIZES, 32, 2, torch.float32, CPU))


@pytest.mark.parametrize("magnified", [False, True])
@pytest.mark.parametrize("way", [Way(ADD, ADD), Way(CARRY, CARRY)])
@pytest.mark.parametrize("groups", [2, 3])
def test_what_is_timed_is_the_same_thing(groups, way, magnified):
    batch = Batch(Case(SIZES, 13, groups, torch.float64, CPU, way, magnified=magnified))
    found = []
    for outputs in (batch.together(), batch.apart()):
        gradients = torch.autograd.grad(outputs, [batch.x, *batch.factors], batch.g)
        found.append([*(y.detach() for y in outputs), *gradients])
    torch.testing.assert_close(*found)
    assert (found[0][0] - batch.x @ batch.weights[0].mT).norm() > 0.1
    assert all(g.norm() > 0.1 for g in found[0][2:])
