from __future__ import annotations

import numpy as np
import pytest

from afina.tune.halving import Leaves, leaving, rungs


@pytest.mark.parametrize(
    ("steps", "count", "found"),
    [(150, 3, [19, 38, 75]), (80, 1, [40]), (80, 0, []), (4, 3, [1, 2]), (1, 3, [])],
)
def test_rungs_double_up_to_half_of_the_way(steps, count, found):
    assert rungs(steps, count) == found


def rows(mean, seed, noise=0.0):
    hard = np.random.default_rng(0).normal(0, 1, 200)
    return (mean + hard + noise * np.random.default_rng(seed).normal(0, 1, 200)).tolist()


def test_the_significantly_worse_of_the_worse_half_leave():
    losses = {"a": rows(1.0, 1), "b": rows(1.5, 2, 0.1), "c": rows(2.0, 3, 0.1), "d": rows(2.5, 4, 0.1)}
    out = leaving(losses)
    assert set(out) == {"c", "d"}  # b is significantly worse than a too, and in the better half
    assert out["c"].reason.startswith("significantly worse than a (+1.0")
    assert {left.worse_than for left in out.values()} == {"a"}


def test_of_an_odd_number_the_one_in_the_middle_stays():
    losses = {name: rows(mean, mean, 0.1) for mean, name in enumerate("abcde", 1)}
    assert set(leaving(losses)) == {"d", "e"}


def test_who_is_worse_by_noise_only_stays():
    losses = {"a": rows(1.0, 1, 3.0), "b": rows(1.01, 2, 3.0), "c": rows(1.02, 3, 3.0), "d": rows(9.0, 4, 3.0)}
    assert set(leaving(losses)) == {"d"}


def test_pairs_find_what_rows_that_are_hard_for_all_would_hide():
    near = {"a": rows(1.0, 1, 0.05), "b": rows(1.05, 2, 0.05)}
    assert set(leaving(near)) == {"b"}
    shuffled = {"a": near["a"], "b": near["b"][::-1]}
    assert not leaving(shuffled)


def test_losses_that_are_not_finite_leave_and_one_alone_stays():
    assert leaving({"a": [1.0, 2.0], "b": [1.0, float("nan")]}) == {"b": Leaves("its held-out loss is not finite")}
    assert leaving({"a": [1.0, 2.0]}) == {}
