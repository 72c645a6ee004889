from __future__ import annotations

import pytest

from afina.train.answers.evaluate import wilson


def test_wilson_interval_of_known_shares():
    # by hand: p = 9/10, z = 1.96: centre (0.9 + 0.19207) / 1.38415, half sqrt(0.009 + 0.0096036) * 1.96 / 1.38415
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
