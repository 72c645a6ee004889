"""The facts that tables are made of."""

from __future__ import annotations

import re

import pytest

import afina
from afina.core.config import method, methods
from afina.core.hosts.adapter import Adapter
from afina.methods.about import about_methods

from ..battery.table import ROWS

ABOUT = {a.config: a for a in about_methods()}


def test_every_registered_method_is_told_of() -> None:
    assert {a.name for a in ABOUT.values()} == set(methods())


@pytest.mark.parametrize("about", ABOUT.values(), ids=lambda a: a.name)
def test_file_says_in_one_sentence_what_the_method_is(about) -> None:
    assert re.fullmatch(r"\S.{10,150}\.", about.summary)
    assert 1e-6 < about.learning_rate < 1


def is_variant(row) -> bool:
    """Whether the row's options choose another class than the registered one, of which the tables tell."""
    config = getattr(afina, row.config)(**row.options)
    implementation = method(config).implementation
    return issubclass(implementation, Adapter) and implementation.for_config(config) is not implementation


@pytest.mark.parametrize("row", [row for row in ROWS if not is_variant(row)], ids=str)
def test_mergeable_is_what_the_battery_proves(row) -> None:
    assert ABOUT[row.config].mergeable == row.merges
