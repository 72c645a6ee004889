"""Options and markers of the whole suite."""

from __future__ import annotations

import pytest

from .selection import CHOSEN, SIZES, select


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--size", choices=SIZES, default="pairs", help="how much of the suite: see tests/selection.py")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # A test that is named runs.
    named = any("::" in str(argument) for argument in config.args)
    left, config.stash[CHOSEN] = select(items, "all" if named else config.getoption("size"))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left])
    items[:] = [item for item in items if item.nodeid not in left]
