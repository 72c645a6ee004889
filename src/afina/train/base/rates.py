"""The learning rate of a run that names none: its method's own, for the base's width and the run's length.

    rate = default * (2048 / width) ** exponent * (1.5 in runs of less than 100 steps)

`default` and `exponent` are the method's own (`PeftConfig.default_learning_rate`, `rate_exponent`); why it is this and
what was measured stands in docs/learning-rates.md.
"""

from __future__ import annotations

from typing import Any

from ...core.config import PeftConfig

WIDTH = 2048
"""The width of the base that a method's `default_learning_rate` is for."""
SHORT, MORE = 100, 1.5
"""Runs of fewer steps want so many times the rate."""


def width_of(config: Any) -> int | None:
    """The width of a base's hidden states by its transformers config (of the text, where it has several parts); None
    where that does not tell it."""
    width: Any = getattr(config.get_text_config(), "hidden_size", None)
    return int(width) if isinstance(width, int) and width > 0 else None


def own_rate(kind: type[PeftConfig], width: int | None, steps: int) -> float:
    """The learning rate for a base of this width (None: not known, taken for 2048) in a run of so many steps.

    To two digits, so that a recipe shows the number that is used.
    """
    by_width = (WIDTH / (width or WIDTH)) ** kind.rate_exponent
    return float(f"{kind.default_learning_rate * by_width * (MORE if steps < SHORT else 1.0):.2g}")
