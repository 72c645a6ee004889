"""`make test` leaves out nothing that the suite promises: see tests/selection.py."""

from __future__ import annotations

import random
from contextlib import nullcontext
from itertools import combinations, product
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from afina.core.config import methods

from . import conftest
from .battery.kinds import KINDS
from .battery.storages import LINEAR_ROWS, STORAGES
from .battery.table import CASES, ROWS
from .selection import CHOSEN, PARTS, Case, covering, part_of

FEW = [dict(zip("abcd", values, strict=True)) for values in product("xy", "xyz", "vwxyz", "tuvwxyz")]


def met(cases: list[Case], together: int) -> set[Any]:
    """All values of parameters that meet, so many at a time."""
    return {meeting for case in cases for meeting in combinations(sorted(case.items()), together)}


@pytest.mark.parametrize("strength", [1, 2, 3])
def test_kept_cases_meet_all_that_meets_and_are_few(strength: int) -> None:
    kept = [FEW[i] for i in sorted(covering(FEW, strength))]
    assert met(kept, strength) == met(FEW, strength)
    assert len(kept) < {1: 8, 2: 45, 3: 150}[strength]  # no fewer than 7, 35 and 105 can do; all are 210


def test_cases_of_few_parameters_are_kept_whole() -> None:
    alone: list[Case] = [{"test": "a"}, {"test": "b"}, {"test": "c", "row": "1"}, {"test": "c", "row": "2"}]
    assert covering(alone, 2) == {0, 1, 2, 3}
    assert covering([], 2) == set()


@pytest.fixture
def chosen(request: pytest.FixtureRequest) -> dict[str, tuple[list[Case], list[Case]]]:
    """What was chosen in this very session, if it is one of the whole suite."""
    found = request.config.stash[CHOSEN]
    if request.config.getoption("size") == "smoke" or not {"battery", "storages", "training by name", "whole"} <= set(
        found
    ):
        pytest.skip("the whole suite has to be collected: make test")
    return found


def test_every_value_of_every_product_is_met(chosen: dict[str, tuple[list[Case], list[Case]]]) -> None:
    for every, kept in chosen.values():
        assert met(kept, 1) == met(every, 1)


def test_every_row_kind_and_storage_is_met_and_every_pair_of_them(
    chosen: dict[str, tuple[list[Case], list[Case]]],
) -> None:
    _, battery = chosen["battery"]
    assert {(c["row"], c["kind"]) for c in battery} == {(str(row), str(kind)) for row, kind in CASES}
    assert {c["kind"] for c in battery} == set(KINDS)
    assert {c["row"] for c in battery} == {str(row) for row in ROWS}
    _, stored = chosen["storages"]
    here = [s for s in STORAGES if s.is_here]
    assert {c["storage"] for c in stored} == {str(s) for s in here}
    able = {(str(s), str(row)) for s in here for row in LINEAR_ROWS if not s.gap("forward", row)}
    assert {(c["storage"], c["row"]) for c in stored} == able


def test_every_check_of_the_battery_meets_every_method(chosen: dict[str, tuple[list[Case], list[Case]]]) -> None:
    every, kept = chosen["battery"]
    assert {(c["test"], c["row"]) for c in kept} == {(c["test"], c["row"]) for c in every}
    assert {(c["test"], c["kind"]) for c in kept} == {(c["test"], c["kind"]) for c in every}


def test_every_method_trains_by_name(chosen: dict[str, tuple[list[Case], list[Case]]]) -> None:
    assert {c["name"] for c in chosen["training by name"][1]} == set(methods())


def test_what_is_chosen_does_not_depend_on_the_order() -> None:
    from .selection import select

    def named(case: Case) -> Any:
        class Item:
            nodeid = "test_x[" + "-".join(case.values()) + "]"
            callspec = type("Spec", (), {"params": case})

            def get_closest_marker(self, name: str) -> Any:
                return pytest.mark.product("p").mark if name == "product" else None

        return Item()

    items = [named(case) for case in FEW]
    left, _ = select(items, "pairs")
    random.Random(0).shuffle(items)
    assert select(items, "pairs")[0] == left
    assert 150 < len(left) < len(items)
    assert select(items, "all")[0] == set()
    assert len(select(items, "smoke")[0]) > len(left)


def test_of_a_sampled_test_every_so_manieth_case_is_kept_by_name() -> None:
    from .selection import select

    def named(test: str, number: int) -> Any:
        class Item:
            nodeid = f"{test}[{number}]"

            def get_closest_marker(self, name: str) -> Any:
                return pytest.mark.sampled(3, "why").mark if name == "sampled" else None

        return Item()

    items = [named(test, number) for number in range(8) for test in ("test_x", "test_y")]
    left, _ = select(items, "pairs")
    assert {item.nodeid for item in items} - left == {f"{t}[{n}]" for t in ("test_x", "test_y") for n in (0, 3, 6)}
    assert select(items, "all")[0] == set()


def test_every_method_meets_every_whole_model_and_every_question(
    chosen: dict[str, tuple[list[Case], list[Case]]],
) -> None:
    every, kept = chosen["whole"]
    for one, other in combinations(("method", "shape", "option", "test"), 2):
        assert {(c[one], c[other]) for c in kept} == {(c[one], c[other]) for c in every}


def test_the_parts_of_the_rest_are_all_of_it_and_apart() -> None:
    names = {f"test_x[{i}]" for i in range(1000)}
    parts = [part_of(names, part) for part in range(PARTS)]
    assert set().union(*parts) == names
    assert sum(map(len, parts)) == len(names)
    assert min(map(len, parts)) > 250


@pytest.mark.parametrize("marked", [False, True])
def test_a_gpu_that_no_longer_answers_ends_the_run_and_the_test_is_named(
    marked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halted() -> None:
        raise RuntimeError("an illegal memory access\nwas encountered")

    monkeypatch.setattr(conftest, "no_gpu", lambda: "")
    monkeypatch.setattr(torch.cuda, "synchronize", halted)
    item: Any = SimpleNamespace(nodeid="tests/a.py::b", get_closest_marker=lambda name: marked)
    expected = pytest.raises(pytest.exit.Exception, match=r"since tests/a\.py::b: an illegal memory")
    with expected if marked else nullcontext():
        conftest.pytest_runtest_teardown(item)
