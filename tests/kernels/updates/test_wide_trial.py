"""Updates take the fastest of the ways that a trial of the layers' sizes finds right; asked once."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from afina.kernels.cuda import trial
from afina.kernels.updates import wide, wide_trial
from afina.kernels.updates.joint import Layer
from afina.kernels.updates.row_columns import RowColumns
from afina.kernels.updates.wide import ADD, ADDED, CARRY, Way

SIZES = ((12, 6), 8, (2, 3))
CPU = torch.device("cpu")
TILES = "tiles of 4 x 4"
FAST = {ADD: 3.0, CARRY: 1.0, TILES: 2.0}, {ADD: 3.0, CARRY: 2.0, TILES: 1.0}
"""Forward, and backward."""


class TileError(Exception):
    """As a compiler's."""


@pytest.fixture
def kernel(monkeypatch):
    """In the place of Triton's: torch's operations, spoilt as asked."""
    out = SimpleNamespace(times=1.0, raises=False, calls=0)

    def product(x, w, t, b, bias, tiles):
        out.calls += 1
        if out.raises:
            raise TileError("no kernel")
        assert tiles == TILES
        return (x @ w + t @ b + (0 if bias is None else bias)) * out.times

    monkeypatch.setitem(sys.modules, "afina.kernels.updates.epilogue", SimpleNamespace(product=product))
    monkeypatch.setattr(wide_trial, "candidates", lambda: {ADD: (), CARRY: (), TILES: (TileError,)})
    return out


@pytest.fixture
def gpu(monkeypatch, tmp_path, kernel):
    """A device that answers as a GPU would."""
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path))
    monkeypatch.setattr(trial, "_where", lambda device: {"device": "NVIDIA H100"})

    def measured(runs, device):
        times = FAST[backward.pop()]
        return [[run(), times[how]][1] for run, how in zip(runs, ways(runs), strict=True)]

    def ways(runs):
        return [run.__defaults__[0].how for run in runs]

    backward, own = [1, 0], wide_trial._Layers

    class Layers(own):
        def __init__(self, *args):
            super().__init__(*args)
            self.how = next((how for how in args[-1] if how != ADD), ADD)

    monkeypatch.setattr(wide_trial, "_Layers", Layers)
    monkeypatch.setattr(wide_trial, "milliseconds", measured)
    wide_trial._known.cache_clear()
    yield tmp_path
    wide_trial._known.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_direction_is_asked_by_itself_and_once(gpu, dtype):
    for _ in range(2):
        assert wide_trial._known(SIZES, 64, dtype, CPU) == Way(CARRY, TILES)
        wide_trial._known.cache_clear()  # another process
    assert len(list(gpu.glob("trials/*/outcome.json"))) == 1


def test_what_is_wrong_is_not_taken_however_fast(gpu, kernel, monkeypatch):
    own = wide_trial.layer_outputs

    def wrong(*args):
        return [y * (1.01 if args[-1] is not None and args[-1].way.moves else 1) for y in own(*args)]

    monkeypatch.setattr(wide_trial, "layer_outputs", wrong)
    kernel.times = 1.01
    assert wide_trial._known(SIZES, 64, torch.float32, CPU) == Way(ADD, CARRY)
    assert kernel.calls == 3  # a try of the outputs of both layers, one of the gradient; never timed


def test_a_kernel_that_does_not_run_leaves_the_others(gpu, kernel):
    kernel.raises = True
    assert wide_trial._known(SIZES, 64, torch.float32, CPU) == Way(CARRY, CARRY)


def test_what_cannot_be_tried_is_added_and_not_kept(gpu, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(wide_trial, "tried", fails)
    assert wide_trial._known(SIZES, 64, torch.float32, CPU) == ADDED
    assert not list(gpu.glob("trials/*/outcome.json"))


def test_processors_are_not_asked(monkeypatch):
    monkeypatch.setattr(wide_trial, "_known", lambda *_: pytest.fail("asked"))
    layer, x = Layer(torch.ones(4, 4), None, torch.ones(2, 4), torch.ones(4, 2), 1.0), torch.ones(8, 4)
    assert wide_trial.way([layer], x) == ADDED
    assert wide_trial.way([layer._replace(rows=RowColumns(2, [([0], 1), ([1], 1)], CPU))], x) is None


@pytest.mark.parametrize("there", [True, False])
def test_without_triton_there_is_no_kernel_to_try(there, monkeypatch):
    monkeypatch.setattr(wide_trial, "has_triton", lambda: there)
    found = list(wide_trial.candidates())
    assert found[:2] == [ADD, CARRY]
    assert (len(found) > 2) == there


def test_the_kernel_makes_both_passes_of_a_layer(kernel):
    """Where the way says so; the first layer's part of the gradient, to which the others' are added."""
    layers = wide_trial._Layers(SIZES, 9, torch.float64, CPU, Way(TILES, TILES))
    assert layers.room is not None
    assert layers.weights[0].is_contiguous()
    for name, calls in (("forward", 2), ("backward", 1)):
        kernel.calls = 0
        torch.testing.assert_close(layers.run(name, layers.room), layers.exact(name))
        assert kernel.calls == calls


def test_a_kernel_is_left_out_where_its_rooms_are_not(kernel):
    assert Way(CARRY, TILES).without_room == Way(ADD, TILES)
    assert wide.ADDED.without_room == ADDED
