from __future__ import annotations

import math

import pytest

from afina.errors import NumericError
from afina.train.answers.evaluate import of_pairs, pair_loss, share_right, wilson


def test_wilson_interval_of_known_shares():
    # by hand: p = 9/10, z = 1.96: centre (0.9 + 0.19207) / 1.38415, half sqrt(0.009 + 0.0096036) * 1.96 / 1.38415
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_share_right_has_its_interval_and_the_commonest_labels_share():
    found = share_right(0.5, 9, ["a"] * 7 + ["b"] * 3, (("p", "a", "b"),))
    assert (found.loss, found.rows, found.accuracy, found.majority) == (0.5, 10, 0.9, 0.7)
    assert (found.low, found.high) == wilson(9, 10)
    assert found.samples == (("p", "a", "b"),)


@pytest.mark.parametrize("margin", [-3.0, -0.5, 0.0, 0.5, 3.0])
def test_pair_loss_is_that_of_the_logistic_function(margin):
    assert pair_loss(margin) == pytest.approx(-math.log(1 / (1 + math.exp(-margin))), rel=1e-12)


def test_pair_loss_does_not_overflow():
    assert pair_loss(-1e4) == 1e4
    assert pair_loss(1e4) == 0


def test_tie_of_a_pair_counts_half():
    found = of_pairs([2.0, -1.5, 0.0, 0.1], "right pairs")
    assert (found.rows, found.accuracy, found.metric) == (4, 2.5 / 4, "right pairs")
    assert found.loss == pytest.approx(sum(map(pair_loss, [2.0, -1.5, 0.0, 0.1])) / 4)
    assert (found.low, found.high) == wilson(2.5, 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_margin_that_is_not_finite_is_refused(bad):
    with pytest.raises(NumericError, match="not finite"):
        of_pairs([1.0, bad], "right pairs")
