from __future__ import annotations

from benchmarks.plan import page
from benchmarks.plan_cases import CASES


def case(planned: int, seconds: float) -> dict:
    return {"measured": {"peak": 100 * 2**20, "seconds": 1.0}, "plan": {"bytes": planned * 2**20, "seconds": seconds}}


def test_the_page_has_every_error_as_it_was_measured() -> None:
    cases = {"near": case(97, 1.1), "far": case(140, 0.5), "failed": {"error": "why"}}
    text = page({"date": "2030-01-01", "machine": {"processor": "x"}, "cases": cases})
    assert "| near | 100 | 97 | -3.0% | 1.000 | 1.100 | +10% |" in text
    assert "| far | 100 | 140 | +40.0% | 1.000 | 0.500 | -50% |" in text
    assert "Of 2 runs 1 are within 5% in memory" in text
    assert "the largest 50.0%" in text
    assert "- failed: why" in text


def test_forty_runs_vary_methods_shapes_storages_and_tasks() -> None:
    assert len(CASES) == 41
    assert len({case.method["type"] for case in CASES.values()}) >= 9
    assert len({case.task for case in CASES.values()}) >= 9
    assert len({case.settings.get("model__quantize") for case in CASES.values()}) >= 3
