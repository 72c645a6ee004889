"""Which tests `make test` runs: of a product of parameters as many as it takes that its values meet in pairs.

Three sizes: "smoke" (`make quick`) meets every value of every parameter, "pairs" (`make test`) any two of them, "all"
(`make test-all`) runs everything. What is chosen depends on the tests' names alone.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import pytest

SIZES = ("smoke", "pairs", "all")
Case = Mapping[str, str]
"""A test's parameters by name; the test function is one of them."""
CHOSEN = pytest.StashKey[dict[str, tuple[list[Case], list[Case]]]]()
"""Of every product: all its cases, and those that were kept."""


def covering(cases: Sequence[Case], strength: int) -> set[int]:
    """Places of cases in which all values that meet anywhere, `strength` at a time, meet at least once."""
    met = [frozenset(combinations(sorted(case.items()), min(strength, len(case)))) for case in cases]
    missing, kept = set[object]().union(*met), set[int]()
    # Greedy: first the cases that add the most.
    for least in range(max(map(len, met), default=0), 0, -1):
        for place, here in enumerate(met):
            if place not in kept and len(here & missing) >= least:
                kept.add(place)
                missing -= here
    return kept


def case_of(item: pytest.Item) -> Case:
    """A test's parameters, and the test function itself."""
    function = item.nodeid.partition("[")[0]
    return {"test": function, **{name: str(value) for name, value in item.callspec.params.items()}}


def select(items: Sequence[pytest.Item], size: str) -> tuple[set[str], dict[str, tuple[list[Case], list[Case]]]]:
    """The names of tests to leave out, and what was chosen of every product."""
    products: dict[str, list[pytest.Item]] = {}
    strengths, left, met = {}, set(), Counter[str]()
    for item in sorted(items, key=lambda item: item.nodeid):
        if size != "all" and (item.get_closest_marker("whole") or _passed_over(item, met)):
            left.add(item.nodeid)
        elif mark := item.get_closest_marker("product"):
            name, strengths[mark.args[0]] = mark.args[0], mark.kwargs.get("strength", 2)
            if not item.get_closest_marker("skip"):
                products.setdefault(name, []).append(item)
            elif size != "all":
                left.add(item.nodeid)  # its reason stands in the table
    chosen = {}
    for name, members in products.items():
        cases = [case_of(item) for item in members]
        strength = {"smoke": 1, "pairs": strengths[name]}.get(size)
        kept = set(range(len(cases))) if strength is None else covering(cases, strength)
        left |= {item.nodeid for place, item in enumerate(members) if place not in kept}
        chosen[name] = (cases, [cases[place] for place in sorted(kept)])
    return left, chosen


def _passed_over(item: pytest.Item, met: Counter[str]) -> bool:
    """Whether a test of which every so manieth case runs is none of them; counts the cases of every test in `met`."""
    mark = item.get_closest_marker("sampled")
    if mark is None:
        return False
    function = item.nodeid.partition("[")[0]
    met[function] += 1
    return bool((met[function] - 1) % mark.args[0])


PARTS = 3
"""What `make test` leaves out is run by parts, one a day."""


def part_of(names: Iterable[str], part: int) -> set[str]:
    """One of the parts of some tests; which one a test is in depends on its name alone."""
    return {name for name in names if zlib.crc32(name.encode()) % PARTS == part}
