"""Batches are those of one process, however many share them out."""

from __future__ import annotations

from afina.devices.found import processor
from afina.devices.ranks import joined, rank, spread_out, turns
from afina.train.answers.batches import in_batches


def judged(rows, cut=False):
    """What comes of them, the batches that this process judged, and what it said to be done."""
    own, told = [], []

    def judge(part):
        own.append(part)
        return [10 * row for row in part], rank()

    with joined(processor()):
        spread_out(cut, cut=cut)
        return in_batches(range(rows), 2, judge, told.append), own, told


def test_every_process_has_what_all_judged_in_the_rows_order(together):
    alone, own, told = judged(5)
    assert [said for said, _ in alone] == [[0, 10], [20, 30], [40]]
    assert (own, told) == ([[0, 1], [2, 3], [4]], [2, 4, 5])
    (first, mine, heard), (second, yours, _) = together(judged, 5)
    assert first == second
    assert [said for said, _ in first] == [said for said, _ in alone]
    assert [who for _, who in first] == [0, 1, 0]
    # All judge equally many; the last of the second one is the first one's, and is not taken.
    assert (mine, yours) == ([[0, 1], [4]], [[2, 3], [0, 1]])
    assert heard == [4, 5]


def test_no_rows_are_no_batches(together):
    assert together(judged, 0) == [judged(0)] * 2 == [([], [], [])] * 2


def test_processes_with_a_part_of_every_layer_judge_all(together):
    assert [own for _, own, _ in together(judged, 5, True)] == [[[0, 1], [2, 3], [4]]] * 2


def test_one_process_has_all_turns():
    assert list(turns(3)) == [0, 1, 2]
