"""Unmodified libraries run on afina as they run on the reference; `benchmarks.ecosystem` prints the same as a table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from benchmarks.ecosystem import TOLERANCE, Library, largest_difference
from benchmarks.scenarios import SCENARIOS

from ..reference import KNOWS_CACHES

MIXINS = ("transformers mixin", "sentence-transformers")
"""What transformers does by itself, which it does with a release of the reference that it knows only."""


@pytest.fixture(scope="module")
def libraries() -> Iterator[tuple[Library, Library]]:
    """The reference, and afina."""
    both = Library("peft"), Library("afina")
    yield both
    for library in both:
        library.close()


@pytest.mark.parametrize("name", SCENARIOS)
def test_library_gets_the_same_numbers_with_peft_not_importable(name: str, libraries: tuple[Library, Library]) -> None:
    ours = libraries[1].run(name)
    assert len(ours) >= 6
    assert len({round(v, 6) for v in ours.values()}) > 2
    if name in MIXINS and not KNOWS_CACHES:
        pytest.skip("transformers refuses this release of the reference; afina alone was run")
    theirs = libraries[0].run(name)
    assert largest_difference(ours, theirs) <= TOLERANCE
