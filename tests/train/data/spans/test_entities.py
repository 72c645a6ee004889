from __future__ import annotations

import pytest

from afina.train.data.spans.entities import entities, entity_f1, is_bio


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-A I-A O", {(0, 2, "A")}),
        ("B-A B-A", {(0, 1, "A"), (1, 2, "A")}),
        ("I-A I-A B-B", {(0, 2, "A"), (2, 3, "B")}),
        ("B-A I-B", {(0, 1, "A"), (1, 2, "B")}),
        ("O O", set()),
        ("O B-A", {(1, 2, "A")}),
    ],
)
def test_entities_begin_at_b_or_where_nothing_is_continued(tags, found):
    assert entities(tags.split()) == found


def test_f1_counts_words_and_type():
    gold = [["B-A", "I-A", "O", "B-B"], ["O"]]
    assert entity_f1(gold, gold) == 1
    assert entity_f1(gold, [["B-A", "O", "O", "B-B"], ["O"]]) == pytest.approx(0.5)  # 1 of 2 found, 1 of 2 right
    assert entity_f1(gold, [["O", "O", "O", "B-A"], ["B-A"]]) == 0
    assert entity_f1(gold, [["B-A", "I-A", None, None], [None]]) == pytest.approx(2 / 3)
    assert entity_f1([["O"]], [["O"]]) == 1


def test_bio_needs_a_type_in_every_tag_but_o():
    assert is_bio(["O", "B-A", "I-A"])
    assert not is_bio(["O"])
    assert not is_bio(["NOUN", "VERB"])
    assert not is_bio(["O", "B-"])
