"""Entities in BIO tags, and how well they are found.

An entity begins at B-X, or at I-X that continues none of its type (the rule of the CoNLL-2000 evaluation).
"""

from __future__ import annotations

from collections.abc import Sequence

Entity = tuple[int, int, str]
"""First word, the word after the last, type."""


def is_bio(labels: Sequence[str]) -> bool:
    """Whether the labels are O, B-... and I-..., with at least one type."""
    typed = [label for label in labels if label != "O"]
    return bool(typed) and all(label[:2] in ("B-", "I-") and len(label) > 2 for label in typed)


def entities(tags: Sequence[str | None]) -> set[Entity]:
    """The entities in a row of tags; None is outside of all."""
    out: set[Entity] = set()
    start, kind = 0, ""
    for i, tag in enumerate([*tags, "O"]):
        mark, _, now = (tag or "O").partition("-")
        if kind and (mark != "I" or now != kind):
            out.add((start, i, kind))
            kind = ""
        if mark in ("B", "I") and not kind:
            start, kind = i, now
    return out


def entity_f1(expected: Sequence[Sequence[str]], got: Sequence[Sequence[str | None]]) -> float:
    """Micro F1 over rows: an entity counts as found if its words and its type are right; 1 if there are none at all."""
    gold = {(row, *entity) for row, tags in enumerate(expected) for entity in entities(tags)}
    found = {(row, *entity) for row, tags in enumerate(got) for entity in entities(tags)}
    return 2 * len(gold & found) / (len(gold) + len(found)) if gold or found else 1.0
