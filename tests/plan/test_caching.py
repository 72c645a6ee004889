from __future__ import annotations

import itertools

from afina.plan.caching import BLOCK, LARGE_SEGMENT, MIB, SMALL_SEGMENT, Caching


def taken(*sizes: int) -> int:
    device = Caching()
    for key, size in enumerate(sizes):
        device.allocate(key, size)
    return device.taken


def test_segments_have_the_sizes_of_the_published_rules():
    assert taken(1) == taken(MIB) == SMALL_SEGMENT
    assert taken(MIB + 1) == taken(10 * MIB - BLOCK) == LARGE_SEGMENT
    assert taken(10 * MIB) == 10 * MIB
    assert taken(10 * MIB + 1) == 12 * MIB
    assert taken(0) == 0


def test_small_blocks_share_a_segment_in_units_of_512_bytes():
    assert taken(*[1] * 4096) == SMALL_SEGMENT
    assert taken(*[1] * 4097) == 2 * SMALL_SEGMENT
    assert taken(*[513] * 2049) == 2 * SMALL_SEGMENT


def test_the_smallest_free_block_that_is_large_enough_is_taken_and_neighbours_merge():
    device = Caching()
    for key, size in enumerate((12 * MIB, 30 * MIB)):
        device.allocate(key, size)
    device.free(0)
    device.free(1)
    device.allocate(2, 11 * MIB)  # of the 12
    device.allocate(3, 15 * MIB)  # of the 30
    device.allocate(4, 15 * MIB)  # and the rest of it
    assert device.taken == 42 * MIB
    device.free(3)
    device.free(4)
    device.allocate(5, 30 * MIB)
    assert device.taken == 42 * MIB
    device.allocate(6, 30 * MIB)
    assert device.taken == 72 * MIB


def test_a_large_block_is_left_whole_where_no_more_than_a_mebibyte_would_be_left():
    device = Caching()
    device.allocate(0, 12 * MIB)
    device.free(0)
    device.allocate(1, 11 * MIB)
    device.allocate(2, MIB + 1)
    assert device.taken == 12 * MIB + LARGE_SEGMENT


def test_free_segments_are_given_back_before_it_is_full():
    device = Caching(capacity=40 * MIB)
    device.allocate(0, 30 * MIB)
    device.free(0)
    device.allocate(1, 36 * MIB)
    assert (device.taken, device.full) == (36 * MIB, False)
    device.allocate(2, 36 * MIB)
    assert device.full


def test_segments_of_any_sizes_lie_apart():
    device = Caching()
    for key, size in enumerate((1000 * MIB, 40 * MIB, 1, 3 * MIB, 40 * MIB)):
        device.allocate(key, size)
    spans = sorted((span.start, span.start + span.size) for span in device._blocks.values())
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(spans))
    for key in range(5):
        device.free(key)
    device.allocate(5, 1000 * MIB)
    assert device.taken == 1000 * MIB + 2 * 40 * MIB + SMALL_SEGMENT + LARGE_SEGMENT
