"""Searches are tested as the training behind them is."""

import pytest

from afina.train.recipe.settings import load_recipe

from ..train import tiny
from ..train.conftest import _quiet_and_alone

__all__ = ["_quiet_and_alone"]


@pytest.fixture
def recipe(tmp_path):
    return load_recipe(str(tiny.write_recipe(tmp_path, tmp_path)))
