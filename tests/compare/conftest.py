"""Comparisons run on the same tiny model as the training behind them."""

from ..train.conftest import _quiet_and_alone, child, model_folder

__all__ = ["_quiet_and_alone", "child", "model_folder"]
