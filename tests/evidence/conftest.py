"""Comparisons are tested as the training behind them is."""

from ..train.conftest import _quiet_and_alone

__all__ = ["_quiet_and_alone"]
