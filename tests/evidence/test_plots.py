from __future__ import annotations

from afina.evidence.plots import smoothed


def test_smoothed_curve_is_the_mean_over_seeds_and_neighbouring_steps():
    curves = [[(1, 4.0), (2, 2.0), (3, 0.0)], [(1, 2.0), (2, 2.0), (3, 2.0), (4, 7.0)]]
    assert smoothed(curves, 0) == [(1, 3.0), (2, 2.0), (3, 1.0), (4, 7.0)]
    assert smoothed(curves, 1) == [(1, 2.5), (2, 2.0), (3, 10 / 3), (4, 4.0)]
    assert smoothed([], 3) == []
