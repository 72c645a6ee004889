from __future__ import annotations

from afina.plan.caching import MIB
from afina.plan.footprint import BESIDE, on_cuda, on_processor
from afina.plan.trace import Event

PARTS = {0: "weights", 1: "activations", 2: "temporary", 3: "activations"}
EVENTS = [Event(1, 40 * MIB, 1), Event(2, 50 * MIB, 1), Event(2, -50 * MIB, 1), Event(3, 30 * MIB, 1)]


def test_the_peak_is_told_by_part():
    found = on_cuda(EVENTS, PARTS, {0: 100 * MIB})
    assert found.parts["weights"] == 100 * MIB
    assert found.parts["activations"] == 40 * MIB
    assert found.parts["temporary"] == 50 * MIB
    assert found.parts["allocator"] == 0
    assert found.bytes == found.alive == 190 * MIB
    assert found.fits


def test_what_does_not_fit_is_told():
    assert on_cuda(EVENTS, PARTS, {0: 100 * MIB}, 190 * MIB).fits
    assert not on_cuda(EVENTS, PARTS, {0: 100 * MIB}, 189 * MIB).fits


def test_weights_of_files_do_not_lie_in_the_heap_and_rows_that_are_not_read_stay_there():
    whole = on_processor(EVENTS, PARTS, {0: 100 * MIB})
    part = on_processor(EVENTS, PARTS, {0: 100 * MIB}, unread=60 * MIB)
    assert whole.bytes - part.bytes == 60 * MIB
    assert whole.parts["libraries"] == BESIDE
    assert 190 * MIB < whole.bytes - BESIDE < 210 * MIB


def test_blocks_that_serve_again_leave_no_gaps_where_torchs_own_do():
    events = [Event(key, MIB, 1) for key in range(2, 42)]
    events += [Event(key, -MIB, 1) for key in range(2, 42, 2)] + [Event(key, MIB, 1) for key in range(42, 62)]
    parts = dict.fromkeys(range(2, 62), "activations")
    torchs, ours = (on_processor(events, parts, {}, plain=plain).bytes - BESIDE for plain in (False, True))
    assert 40 * MIB < ours < 42 * MIB
    assert torchs > ours + 15 * MIB


def test_a_weight_that_goes_is_no_longer_counted():
    found = on_cuda([Event(0, -100 * MIB, 0), *EVENTS, Event(2, 50 * MIB, 2)], PARTS, {0: 100 * MIB})
    assert (found.alive, found.parts["weights"]) == (120 * MIB, 0)
    assert found.bytes == 150 * MIB  # of the weight's segment 60 MiB stay free, in two pieces
