from __future__ import annotations

import json
import sys

import pytest

from afina.errors import RecipeError, StoppedError
from benchmarks import rates


def kept(factor, seed, loss, method="lora"):
    cell = rates.Cell("entities", method, 40, factor, seed)
    return cell.key, {
        **cell._asdict(),
        "rate": factor * 2e-4,
        "after": {"loss": loss},
        "descent": "fell",
        "seconds": 10,
    }


def test_every_combination_is_run_once():
    assert len({cell.key for cell in rates.cells()}) == 3 * 12 * 5 * 2 * 3


def test_time_left_is_that_of_finished_runs():
    assert rates.left(rates.cells()[:6], {}) is None
    assert rates.left(rates.cells()[:6], dict([kept(1.0, 0, 0.5)])) == 60


def test_best_rate_has_the_lowest_mean_loss_of_those_that_all_seeds_survived():
    lived = {0.3: (0.6, 0.6), 1.0: (0.4, 0.6), 3.0: (0.6, 0.6), 10.0: (0.1,)}
    runs = dict(kept(factor, seed, loss) for factor, of in lived.items() for seed, loss in enumerate(of))
    assert list(rates.best(runs))[2] == "| entities | lora | 40 | 0.0002 | 1 | 0.5000 | 2 | 2 of 2 |"


def test_best_rate_at_the_end_of_the_range_is_marked():
    assert "10 (at the end)" in list(rates.best(dict([kept(1.0, 0, 0.6), kept(10.0, 0, 0.4)])))[2]


def called(monkeypatch, out, run):
    monkeypatch.setattr(rates, "run", run)
    monkeypatch.setattr(sys, "argv", ["rates", "--only", "lora", "--cells", "1", "--out", str(out)])
    rates.main()


def test_stopped_run_is_not_kept_and_a_failed_one_is(monkeypatch, tmp_path, capsys):
    def stopped(recipe, reporter):
        raise StoppedError("stopped", fix="go on", exit_code=143)

    def failed(recipe, reporter):
        raise RecipeError("no bias")

    out = tmp_path / "rates.json"
    with pytest.raises(SystemExit, match="143"):
        called(monkeypatch, out, stopped)
    assert not out.exists()
    called(monkeypatch, out, failed)
    assert [run["error"] for run in json.loads(out.read_text()).values()] == ["no bias"]
    called(monkeypatch, out, failed)
    assert len(json.loads(out.read_text())) == 2
    assert "1 runs are kept" in capsys.readouterr().out


def test_far_rates_of_later_seeds_are_those_two_places_from_the_first_one_s_best():
    runs = dict([kept(1.0, 0, 0.9), kept(3.0, 0, 0.6), kept(10.0, 0, 0.5), kept(30.0, 0, 0.7), kept(100.0, 0, 0.9)])
    cells = [rates.Cell("entities", "lora", 40, factor, 1) for factor in rates.FACTORS]
    assert [cell.factor for cell in cells if not rates.is_far(cell, runs)] == [3.0, 10.0, 30.0]
    assert not any(rates.is_far(cell._replace(seed=0), runs) for cell in cells)
    assert not any(rates.is_far(cell._replace(method="ia3"), runs) for cell in cells)
