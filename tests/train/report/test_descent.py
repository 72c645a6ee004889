from __future__ import annotations

import math
import random

import pytest

from afina.train.report.descent import Descent, advice, descent, rate_to_try


def noisy(mean, count, spread, seed=0):
    """Losses around `mean`, which may be a function of the step."""
    draw = random.Random(seed)
    at = mean if callable(mean) else lambda step: mean
    return [at(step) + draw.gauss(0, spread) for step in range(count)]


def test_loss_that_falls_through_its_noise_fell():
    assert descent(noisy(lambda step: 2 - step / 100, 40, 0.1)).verdict == "fell"


def test_steep_beginning_does_not_count_as_noise():
    assert descent([math.exp(2 - step / 2) + 1 for step in range(30)]).verdict == "fell"


def test_fall_within_the_noise_is_flat():
    assert descent(noisy(lambda step: 2 - step / 4000, 40, 0.3)).verdict == "flat"


def test_constant_loss_is_flat():
    assert descent([math.log(2)] * 30).verdict == "flat"


def test_rounding_is_no_fall():
    assert descent([0.7] * 15 + [0.7 - 1e-8] * 15).verdict == "flat"


def test_noise_alone_is_called_a_fall_once_in_twenty_at_most():
    called = sum(descent(noisy(2.0, 30, 0.3, seed)).verdict == "fell" for seed in range(1000))
    assert called <= 50


@pytest.mark.parametrize("count", [0, 1, 9])
def test_fewer_than_ten_losses_are_too_short(count):
    assert descent([5.0 - step for step in range(count)]) == Descent("too short")


def test_ten_losses_are_enough():
    found = descent([5.0 - step / 2 for step in range(10)])
    assert found == Descent("fell", 5, 4.0, 1.5, pytest.approx(0.447, abs=1e-3))


def test_window_is_a_quarter_and_at_most_fifty():
    assert descent([1.0] * 100).window == 25
    assert descent([1.0] * 1000).window == 50


def test_exploding_loss_rose():
    assert descent([1.02**step for step in range(100)]).verdict == "rose"
    assert descent([1.0] * 20 + [math.nan]).verdict == "rose"


FLAT, ROSE = descent([0.7] * 40), descent([1.02**step for step in range(100)])


def test_ten_times_the_rate_is_tried_or_the_default_if_higher():
    assert rate_to_try(FLAT, 2e-4, 2e-4) == 2e-3
    assert rate_to_try(FLAT, 1e-6, 2e-4) == 2e-4


def test_the_default_is_tried_where_a_rate_far_above_it_learnt_nothing():
    assert rate_to_try(FLAT, 1.5e-3, 1.5e-4) == 1.5e-4


def test_lower_rate_is_tried_where_the_loss_rose():
    assert rate_to_try(ROSE, 2e-2, 2e-4) == 2e-3


def test_trained_and_short_runs_are_given_no_rate():
    assert rate_to_try(descent([5.0 - step / 10 for step in range(40)]), 2e-4, 2e-4) is None
    assert rate_to_try(descent([5.0, 4.0]), 2e-4, 2e-4) is None


def test_advice_is_one_line_with_the_numbers_and_the_rate():
    assert advice(FLAT, 2e-3) == (
        "not trained: the training loss did not fall by more than its noise (mean of the first 10 logged 0.7, of the "
        "last 0.7; noise 0); try training.learning_rate=0.002"
    )
    assert advice(descent([math.inf]), 2e-3) == "not trained: the training loss rose; try training.learning_rate=0.002"
