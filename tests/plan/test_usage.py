from __future__ import annotations

import pytest

from afina.plan.usage import told_seconds


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (3540, "59 min"), (3600, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_times_are_told_in_words(seconds, words):
    assert told_seconds(seconds) == words
