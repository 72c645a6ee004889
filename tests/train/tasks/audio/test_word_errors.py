from __future__ import annotations

import sys

import pytest

from afina.errors import RecipeError
from afina.train.report.scores import Scores
from afina.train.tasks.audio.word_errors import error_scores, plain


def test_words_that_are_wrong_missing_or_too_many_are_counted_in_shares_of_all():
    scores = error_scores(None, ["a b c d", "e f"], ["A b, x d", "e f g h"])
    assert scores.word_errors == pytest.approx(3 / 6)
    assert (scores.accuracy, scores.rows, scores.majority) == (0.0, 2, None)
    assert error_scores(0.5, ["Dau, tri!"], ["dau tri"]).accuracy == 1
    assert "word error rate 0.500" in str(scores)
    assert Scores.from_dict(scores.as_dict()) == scores


def test_texts_are_compared_in_small_letters_without_punctuation():
    assert plain(" Un, DAU - tri. ") == "un dau tri"
    assert plain("...") == ""


def test_without_jiwer_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(RecipeError, match="jiwer") as told:
        error_scores(None, ["a"], ["a"])
    assert "afina[audio]" in str(told.value)
