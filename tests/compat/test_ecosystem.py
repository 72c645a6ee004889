"""Unmodified libraries run on afina as they run on the reference; `benchmarks.ecosystem` prints the same as a table."""

from __future__ import annotations

import pytest
from benchmarks.ecosystem import TOLERANCE, largest_difference, run
from benchmarks.scenarios import SCENARIOS


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_library_gets_the_same_numbers_with_peft_not_importable(name):
    theirs, ours = run(name, "peft"), run(name, "afina")
    assert len(theirs) >= 6
    assert len({round(v, 6) for v in theirs.values()}) > 2
    assert largest_difference(ours, theirs) <= TOLERANCE
