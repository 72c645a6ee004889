from __future__ import annotations

from pathlib import Path

import pytest

from afina.errors import DataError, RecipeError
from afina.train.data.rows import Rows
from afina.train.data.spans.answer_spans import Question, exact_match, question_of, token_f1, windows

from ... import tiny


def asked(**row):
    return question_of(
        Rows(Path("x.jsonl"), [{"question": "q?", "context": "the cat sat, the cat ran", **row}], [7]), 0
    )


SHAPES = {
    "squad": {"answers": {"text": ["cat"], "answer_start": [4]}},
    "list": {"answers": [{"text": "cat", "answer_start": 4}]},
    "found": {"answers": {"text": ["cat"]}},
    "one": {"answer": "cat"},
    "one placed": {"answer": "cat", "answer_start": 4},
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_answers_are_one(name):
    assert asked(**SHAPES[name]).answers == ((4, "cat"),)


def test_second_place_of_an_answer_and_no_answer_are_kept():
    assert asked(answers={"text": ["cat"], "answer_start": [17]}).answers == ((17, "cat"),)
    assert asked(answers={"text": [], "answer_start": []}).answers == ()
    assert asked(answer="").answers == ()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"answer": "dog"}, "does not stand in the context"),
        ({"answers": {"text": ["cat"], "answer_start": [5]}}, "does not stand in the context"),
        ({"answers": "cat"}, "malformed answers"), ({}, "no column 'answer'"),
    ],
)  # fmt: skip
def test_answers_that_are_not_there_are_told_with_their_line(row, told):
    with pytest.raises(DataError, match=rf"x\.jsonl:7: .*{told}"):
        asked(**row)


def test_windows_cover_the_context_and_hold_the_answer_where_it_stands():
    text = "".join(chr(97 + i % 26) for i in range(100))
    question = Question("why?", text, ((60, text[60:64]),))
    made = windows(tiny.tokenizer(), question, 32)
    seen = [o for window in made for o in window.offsets if o is not None]
    assert {first for first, _ in seen} == set(range(100))
    assert all(len(window.ids) <= 32 for window in made)
    held = [(w, p) for w in made if (p := w.positions(60, text[60:64]))]
    assert held
    for window, (first, last) in held:
        assert (window.offsets[first][0], window.offsets[last][1]) == (60, 64)


def test_question_without_room_is_refused():
    with pytest.raises(RecipeError, match="no room"):
        windows(tiny.tokenizer(), Question("a long question?", "text"), 16)


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "f1"),
    [
        ("The Cat.", ["cat"], 1, 1), ("a black cat", ["black dog", "cat"], 0, 2 / 3), ("", [], 1, 1),
        ("cat", [], 0, 0), ("", ["cat"], 0, 0), ("the", ["a"], 1, 1),
    ],
)  # fmt: skip
def test_scores_are_squads(answer, gold, exact, f1):
    assert exact_match(answer, gold) == exact
    assert token_f1(answer, gold) == pytest.approx(f1)
