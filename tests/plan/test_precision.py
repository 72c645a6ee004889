from __future__ import annotations

import pytest
import torch

from afina.plan import precision


@pytest.mark.parametrize(("fast", "dtype"), [(0.1, "bfloat16"), (0.7, "bfloat16"), (0.8, "float32"), (3.0, "float32")])
def test_bfloat16_is_chosen_where_it_is_measured_to_be_clearly_faster(monkeypatch, fast, dtype):
    monkeypatch.setattr(precision, "product_seconds", lambda kind, *rest: fast if kind is torch.bfloat16 else 1.0)
    choice = precision.choose_dtype()
    assert choice.dtype == dtype
    assert f"{1 / fast:.1f} times as fast" in choice.reason


def test_the_measurement_runs_here():
    assert precision.choose_dtype(size=64, rounds=1).dtype in ("float32", "bfloat16")
