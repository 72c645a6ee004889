from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from afina.evidence.score import (
    Interval,
    interval,
    is_worse,
    recommend,
    standings,
    t_quantile,
    told_difference,
    told_margin,
    was_trained,
)  # fmt: skip


def coin(share, items=400, shift=0):
    """A run with exactly this share of right items, at places that `shift` moves."""
    right = round(share * items)
    return [float((i * 7 + shift) % items < right) for i in range(items)]


def test_interval_of_one_seed_is_that_of_the_textbook():
    p, n = 0.8, 400
    found = interval(np.array([coin(p, n)]))
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    assert found.mean == pytest.approx(p)
    assert found.low == pytest.approx(p - half, abs=0.006)
    assert found.high == pytest.approx(p + half, abs=0.006)


def test_interval_leaves_out_one_in_forty_on_either_side():
    scores = np.random.default_rng(0).normal(3, 2, (1, 1000))
    found, half = interval(scores), 1.96 * scores.std() / math.sqrt(1000)
    assert scores.mean() - found.low == pytest.approx(half, rel=0.04)
    assert found.high - scores.mean() == pytest.approx(half, rel=0.04)


def test_interval_repeats_to_the_bit():
    scores = np.array([coin(0.7), coin(0.72, shift=3)])
    assert interval(scores) == interval(scores)


def test_interval_covers_the_truth_about_95_times_in_100():
    draw, truth, hits = np.random.default_rng(1), 0.75, 0
    for _ in range(400):
        found = interval((draw.random((1, 150)) < truth).astype(float))
        hits += found.low <= truth <= found.high
    assert 0.91 <= hits / 400 <= 0.98


def test_seeds_that_differ_widen_the_interval():
    alike = interval(np.array([coin(0.8)] * 3))
    apart = interval(np.array([coin(0.7), coin(0.8), coin(0.9)]))
    assert apart.high - apart.low > 1.3 * (alike.high - alike.low)
    assert alike.low < 0.8 < alike.high
    assert alike.mean == pytest.approx((alike.low + alike.high) / 2, abs=0.01)


@pytest.mark.parametrize("degrees", [1, 2, 4.5, 30, 1e3, 1e6])
def test_t_is_that_of_the_tables(degrees):
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=2e-4)
    assert t_quantile(0.3) == t_quantile(1)


@pytest.mark.parametrize("of_seeds", [0.0, 0.05])
def test_interval_of_three_seeds_covers_the_truth_about_95_times_in_100(of_seeds):
    """Where seeds differ a bootstrap of three seeds covers it about 80 times."""
    draw, hits = np.random.default_rng(2), 0
    for _ in range(400):
        scores = draw.normal(0, of_seeds, (3, 1)) + draw.normal(0, 0.3, 200) + draw.normal(0, 0.2, (3, 200))
        found = interval(scores)
        hits += found.low <= 0.0 <= found.high
    assert 0.92 <= hits / 400 <= 0.99


def test_interval_is_that_of_the_two_way_layout():
    """Of the mean of 2 seeds x 3 items: items give .75, seeds 1, what both leave 1/12, and 2.16 degrees of freedom."""
    found = interval(np.array([[0.0, 1.0, 2.0], [1.0, 3.0, 5.0]]))
    variance = 0.75 + 1.0 - 1 / 12
    degrees = variance**2 / (0.75**2 / 2 + 1.0**2 + (1 / 12) ** 2 / 2)
    assert found.mean == 2.0
    assert found.high - 2.0 == pytest.approx(stats.t.ppf(0.975, degrees) * variance**0.5, rel=1e-4)
    assert 2.0 - found.low == pytest.approx(found.high - 2.0)


def test_two_seeds_that_differ_tell_next_to_nothing():
    found = interval(np.array([[0.70] * 400, [0.72] * 400]) + np.random.default_rng(0).normal(0, 1e-3, (2, 400)))
    assert found.high - found.low > 0.2


def test_a_share_of_right_answers_lies_between_none_and_all():
    _, found = standings({"a": {0: coin(0.99, 20), 1: coin(0.9, 20)}}, higher_is_better=True)
    assert found["a"].quality.high == 1.0
    _, found = standings({"a": {0: coin(0.99, 20), 1: coin(0.9, 20)}}, higher_is_better=False)
    assert found["a"].quality.high > 1.0


def test_what_is_equal_everywhere_has_no_width_and_one_item_neither():
    assert interval(np.ones((3, 5))) == Interval(1.0, 1.0, 1.0)
    assert interval(np.array([[0.5], [1.0]])) == Interval(0.75, 0.75, 0.75)


def test_pairs_find_a_difference_that_separate_intervals_hide():
    good = coin(0.8)
    bad = [0.0 if i in range(0, 400, 40) else value for i, value in enumerate(good)]  # ten items, some right before
    best, found = standings({"good": {0: good}, "bad": {0: bad}}, higher_is_better=True)
    assert best == "good"
    assert found["bad"].quality.high > found["good"].quality.low
    assert is_worse(found["bad"].to_best, higher_is_better=True)
    assert found["good"].to_best is None


def test_two_methods_that_err_on_other_items_are_not_told_apart():
    _, found = standings({"a": {0: coin(0.80)}, "b": {0: coin(0.79, shift=200)}}, higher_is_better=True)
    assert not is_worse(found["b"].to_best, higher_is_better=True)


def test_of_losses_the_lowest_is_best_and_more_is_worse():
    low, high = [1.0, 2.0, 1.5] * 50, [1.1, 2.1, 1.6] * 50
    best, found = standings({"high": {0: high}, "low": {0: low}}, higher_is_better=False)
    assert best == "low"
    assert found["high"].to_best.mean == pytest.approx(0.1)
    assert is_worse(found["high"].to_best, higher_is_better=False)


def test_pairs_are_taken_over_the_seeds_that_both_have():
    scores = {"full": {0: coin(0.5), 1: coin(0.9)}, "lora": {0: coin(0.9), 1: coin(0.9)}, "ia3": {1: coin(0.8)}}
    best, found = standings(scores, higher_is_better=True, full="full")
    assert best == "lora"
    assert found["ia3"].to_full.mean == pytest.approx(-0.1)
    assert found["lora"].to_full.mean == pytest.approx(0.2)
    assert found["full"].to_full is None
    assert [found[name].seeds for name in scores] == [2, 2, 1]
    assert found["ia3"].quality.mean == pytest.approx(0.8)
    assert standings(scores, higher_is_better=True)[1]["ia3"].to_full is None


def test_methods_without_a_common_seed_are_not_compared():
    _, found = standings({"a": {0: coin(0.9)}, "b": {1: coin(0.8)}}, higher_is_better=True)
    assert found["b"].to_best is None


def test_method_that_finished_fewer_seeds_is_not_the_best():
    best, _ = standings({"lucky": {0: coin(1.0)}, "sound": {0: coin(0.8), 1: coin(0.8)}}, higher_is_better=True)
    assert best == "sound"


def row(name, mean, trainable, *, worse=False, complete=True, trained=True, wall=10.0):
    quality = {"mean": mean, "low": mean - 0.02, "high": mean + 0.02}
    return {"name": name, "quality": quality, "to_best": {"mean": mean - 0.9, "low": -0.03, "high": 0.01},
            "worse": worse, "complete": complete, "trained": trained, "rate_to_try": 2e-3,
            "learning_rate": 2e-4, "trainable": trainable, "share": trainable / 1000, "wall_s": wall,
            "memory_mb": 1.0, "size_bytes": 1}  # fmt: skip


def advise(*rows, floor=0.5, metric="accuracy"):
    return recommend(rows, rows[0]["name"], metric=metric, floor=floor)


def test_cheapest_of_those_not_significantly_worse_is_recommended():
    found = advise(
        row("full", 0.90, 1000), row("lora", 0.89, 20), row("ia3", 0.895, 10), row("bitfit", 0.7, 1, worse=True)
    )
    assert found.name == "ia3"
    assert "no significant difference" in found.sentence
    assert "100 times fewer" in found.sentence
    assert "10 trained parameters (1 %)" in found.sentence


@pytest.mark.parametrize(("of_best", "times"), [(39, "4 times"), (20, "2 times"), (23, "2 times"), (15, "1.50 times")])
def test_recommendation_tells_how_many_times_fewer_parameters_and_how_much_longer_it_took(of_best, times):
    found = advise(row("full", 0.9, of_best, wall=10.0), row("ia3", 0.9, 10, wall=25.0))
    assert f", {times} fewer than the best" in found.sentence
    assert "2.5 times as long" in found.sentence


def test_of_two_that_are_as_small_the_faster_is_recommended():
    assert advise(row("full", 0.9, 20), row("slow", 0.9, 10, wall=9.0), row("fast", 0.9, 10, wall=8.0)).name == "fast"


def test_times_of_runs_made_beside_others_are_not_compared():
    rows = [row("full", 0.9, 20), row("slow", 0.9, 10, wall=9.0), row("fast", 0.9, 10, wall=8.0)]
    found = recommend(rows, "full", metric="accuracy", floor=0.5, timed=False)
    assert found.name == "slow"
    assert "as long" not in found.sentence


def test_smallest_is_recommended_as_the_best_where_none_has_fewer():
    found = advise(row("ia3", 0.9, 10), row("lora", 0.9, 10, wall=12.0), row("full", 0.8, 1000, worse=True))
    assert found.name == "ia3"
    assert found.sentence.endswith("(1 %); none has fewer.")


@pytest.mark.parametrize(("metric", "expected"), [("accuracy", "high"), ("loss", "low")])
def test_second_choice_is_the_best_of_the_cheaper_ones(metric, expected):
    cheaper = [row("middle", 0.83, 20), row("high", 0.86, 10), row("low", 0.8, 10)]
    found = advise(row("full", 0.9, 1000), *({**r, "worse": True} for r in cheaper), metric=metric, floor=None)
    assert f"too dear: {expected} (" in found.sentence


def test_second_choice_finished_all_its_runs_and_has_no_memory_told_that_was_not_measured():
    full, cheap = row("full", 0.9, 1000), row("ia3", 0.8, 10, worse=True)
    assert "too dear" not in advise(full, {**cheap, "complete": False}).sentence
    assert "memory" not in advise({**full, "memory_mb": 0}, cheap).sentence
    assert "0.5 times the memory" in advise({**full, "memory_mb": 2.0}, cheap).sentence


def test_quality_of_a_recommendation_is_told_in_its_metrics_unit():
    assert "the best, 90.0% right [88.0%, 92.0%], with" in advise(row("ia3", 0.9, 10)).sentence
    found = advise(row("ia3", 0.9, 10), metric="loss", floor=None).sentence
    assert "the best, loss 0.900 [0.880, 0.920], with" in found


def test_best_is_recommended_where_all_cheaper_ones_are_worse():
    found = advise(row("full", 0.90, 1000), row("lora", 0.80, 20, worse=True))
    assert found.name == "full"
    assert "every method with fewer is significantly worse" in found.sentence
    assert found.sentence.endswith("Where that is too dear: lora (-10.0 [-3.0, +1.0] points), with 50 times fewer "
                                   "trained parameters and 1.0 times the memory.")  # fmt: skip


def test_no_second_choice_is_named_that_does_not_beat_the_commonest_label():
    for floor in (0.5, 0.51 - 0.02):
        found = advise(row("full", 0.90, 1000), row("ia3", 0.51, 1, worse=True), floor=floor)
        assert "too dear" not in found.sentence


def test_method_without_all_seeds_is_not_recommended():
    assert advise(row("full", 0.90, 1000), row("ia3", 0.9, 1, complete=False)).name == "full"


def test_nothing_is_recommended_that_does_not_beat_the_commonest_label():
    found = advise(row("full", 0.70, 1000), row("ia3", 0.70, 1), floor=0.69)
    assert found.name == ""
    assert "69.0%" in found.sentence
    best = row("full", 0.90, 1000)
    assert advise(best, floor=best["quality"]["low"]).name == ""
    assert advise(best, floor=best["quality"]["low"] - 0.01).name == "full"


def test_differences_of_accuracies_are_told_in_points():
    value = {"mean": -0.012, "low": -0.03, "high": 0.004}
    assert told_difference(value, "accuracy") == "-1.2 [-3.0, +0.4] points"
    assert told_difference(value, "loss") == "-0.012 [-0.030, +0.004]"
    assert told_difference(None, "loss") == "-"


def test_worse_is_what_lies_on_the_worse_side_of_zero_as_a_whole():
    assert not is_worse(Interval(-0.1, -0.2, 0.0), higher_is_better=True)
    assert not is_worse(Interval(0.1, 0.0, 0.2), higher_is_better=False)
    assert not is_worse(Interval(0.1, -0.1, 0.2), higher_is_better=False)
    assert is_worse(Interval(0.1, 0.01, 0.2), higher_is_better=False)
    assert not is_worse(None, higher_is_better=True)


def test_only_what_was_trained_is_recommended_and_the_others_are_named():
    idle = row("lora", 0.91, 5, trained=False)
    found = recommend([idle, row("full", 0.9, 100), row("ia3", 0.895, 10)], "full", metric="accuracy", floor=0.5)
    assert found.name == "ia3"
    assert "Left out, because the training loss did not fall" in found.sentence
    assert "lora (at 0.0002; try lr=0.002)" in found.sentence
    found = advise(idle)
    assert found.name == ""
    assert "none was trained" in found.sentence


def test_the_best_is_one_of_those_that_were_trained():
    scores = {"idle": {0: coin(0.9)}, "good": {0: coin(0.8)}, "bad": {0: coin(0.6)}}
    assert standings(scores, higher_is_better=True)[0] == "idle"
    best, found = standings(scores, higher_is_better=True, among=["good", "bad"])
    assert best == "good"
    assert found["idle"].to_best.mean == pytest.approx(0.1)


def test_how_much_worse_it_may_be_is_told_with_the_recommendation():
    assert "at most 3.0 points worse" in advise(row("full", 0.9, 1000), row("ia3", 0.895, 10)).sentence
    assert told_margin({"low": -0.2, "high": 0.03}, "loss") == "at most 0.030 worse, with 95 % certainty"
    assert told_margin({"low": 0.1, "high": 0.3}, "accuracy").startswith("at most 0.0 points")
    assert told_margin({"low": -0.25, "high": 0.3}, "accuracy").startswith("at most 25.0 points")


@pytest.mark.parametrize(
    ("metric", "near", "far"),
    [
        ("accuracy", {"low": -0.05, "high": 0.01}, {"low": -0.051, "high": 0.2}),
        ("loss", {"low": -0.1, "high": 0.045}, {"low": -0.3, "high": 0.046}),
    ],
)
def test_one_whose_seeds_differ_so_much_that_it_may_be_far_worse_is_not_recommended(metric, near, far):
    full, ia3, road = row("full", 0.9, 1000), row("ia3", 0.89, 10), row("road", 0.8, 1)
    ia3["to_best"], road["to_best"] = {"mean": -0.01, **near}, {"mean": -0.02, **far}
    assert advise(full, ia3, road, metric=metric, floor=None).name == "ia3"
    alone = advise(full, road, metric=metric, floor=None)
    assert alone.name == "full"
    assert "of those with fewer road may be as good, or more than 5" in alone.sentence
    assert "too dear: road" in alone.sentence
    assert advise(full, {**road, "to_best": None}, metric=metric, floor=0.5).name == "full"


def test_runs_too_short_to_tell_forbid_no_recommendation():
    assert advise(row("full", 0.9, 1000, trained=None), row("ia3", 0.9, 1, trained=None)).name == "ia3"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["fell", "fell", "flat"], True),
        (["fell", "flat"], False),
        (["fell"] * 3 + ["flat"] * 3, False),
        (["rose"], False),
        (["fell", "too short"], True),
        (["too short"], None),
        ([], None),
    ],
)
def test_method_is_trained_if_the_loss_fell_in_most_runs_that_tell(verdicts, expected):
    assert was_trained(verdicts) is expected
