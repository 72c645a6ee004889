"""Unmodified libraries run on afina as they run on the reference; `benchmarks.ecosystem` prints the same as a table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from benchmarks.ecosystem import TOLERANCE, Library, largest_difference
from benchmarks.scenarios import SCENARIOS


@pytest.fixture(scope="module")
def libraries() -> Iterator[tuple[Library, Library]]:
    """The reference, and afina."""
    both = Library("peft"), Library("afina")
    yield both
    for library in both:
        library.close()


@pytest.mark.parametrize("name", SCENARIOS)
def test_library_gets_the_same_numbers_with_peft_not_importable(name: str, libraries: tuple[Library, Library]) -> None:
    theirs, ours = (library.run(name) for library in libraries)
    assert len(theirs) >= 6
    assert len({round(v, 6) for v in theirs.values()}) > 2
    assert largest_difference(ours, theirs) <= TOLERANCE
