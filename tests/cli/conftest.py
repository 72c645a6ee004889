"""The commands are tested on the same tiny model, and in the same child process, as the training behind them."""

from ..train.conftest import _quiet_and_alone, child, model_folder

__all__ = ["_quiet_and_alone", "child", "model_folder"]
