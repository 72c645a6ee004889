"""Every public name says what it is, and what each of its parameters, fields and errors means."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from scripts.docstrings import gaps, parse

import afina


@pytest.mark.parametrize("name", afina.__all__)
def test_public_name_documents_its_parameters_fields_and_errors(name: str) -> None:
    assert not [*gaps(name, getattr(afina, name))]


def undocumented(model, rank=8, **more):
    """Do something to `model`.

    Args:
        **more: anything.
    """
    if rank < 1:
        raise ValueError("no rank")


@dataclass
class Settings:
    """Settings.

    Attributes:
        told: in the docstring.
    """

    told: int = 0
    below: int = 0
    """Told below the field."""
    left_out: int = 0

    def change(self, how):
        pass


def test_what_is_left_out_is_found() -> None:
    assert [*gaps("f", undocumented)] == ["f: parameter rank", "f: raises ValueError"]
    assert "Settings: field left_out" in {*gaps("Settings", Settings)}
    assert not [g for g in gaps("Settings", Settings) if "told" in g or "below" in g]


def test_entries_of_several_names_and_lines_are_taken_apart() -> None:
    doc = parse("""Text.

    Args:
        a, b: first line
            and second.
        **c: last.

    Returns:
        Something.

    More text.
    """)
    assert doc.named("Args") == {"a": "first line and second.", "b": "first line and second.", "c": "last."}
    assert doc.entries["Returns"] == {"": "Something."}
    assert doc.text.splitlines() == ["Text.", "", "More text."]
