from __future__ import annotations

import pytest

from afina.train.answers.evaluate import Scores, wilson
from afina.train.data.labels import is_right


def test_wilson_interval_of_known_shares():
    # by hand: p = 9/10, z = 1.96: centre (0.9 + 0.19207) / 1.38415, half sqrt(0.009 + 0.0096036) * 1.96 / 1.38415
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("answer", ["positive", "Positive", " POSITIVE.", "positive.\n"])
def test_case_and_a_full_stop_do_not_count(answer):
    assert is_right(answer, "positive", ["negative", "positive"])


@pytest.mark.parametrize("answer", ["", "negative", "positive!", "positive, I think", "The tweet is positive", "pos"])
def test_anything_else_is_wrong(answer):
    assert not is_right(answer, "positive", ["negative", "positive"])


def test_case_counts_where_labels_differ_by_it():
    assert is_right("A", "A", ["A", "a"])
    assert not is_right("a", "A", ["A", "a"])


def test_scores_survive_json():
    scores = Scores(0.5, 3, 1.0, 0.4, 1.0, 0.6, (("p", "e", "g"),))
    assert Scores.from_dict(scores.as_dict()) == scores
