from __future__ import annotations

import pytest

from afina.errors import DataError
from afina.train.data.encode import IGNORED
from afina.train.data.labels import found_tags
from afina.train.recipe.sections import DataSection
from afina.train.tasks.token_classification import TokenClassification, sub_tokens

from ..data.test_encode import prompter, rows

ROW = {"tokens": ["abc", "d", "ef"], "tags": ["B-X", "O", "I-X"]}
LABELS = ["B-X", "I-X", "O"]


def test_first_sub_token_of_a_word_carries_its_tag():
    p = prompter(chat=False)
    (item,) = TokenClassification().encode(rows(ROW), p, LABELS, 259).items
    assert p.tokenizer.decode(item["input_ids"]) == "abcdef"
    assert item["labels"] == [0, IGNORED, IGNORED, 2, 1, IGNORED]


def test_words_beyond_max_length_have_no_position_and_are_counted():
    p = prompter(chat=False, max_length=4)
    ids, first = sub_tokens(p.tokenizer, ROW["tokens"], 4)
    assert (len(ids), first) == (4, [0, 3, None])
    assert TokenClassification().encode(rows(ROW), p, LABELS, 259).truncated == 1


def test_tags_are_found_in_the_rows_or_given_as_numbers():
    data = DataSection(train="x")
    assert TokenClassification().labels(data, [rows(ROW)]) == LABELS
    numbered = {"tokens": ["a", "b"], "tags": [0, 2]}
    assert found_tags(rows(numbered), "tags") == ["0", "1", "2"]
    named = DataSection(train="x", labels=LABELS)
    (item,) = TokenClassification().encode(rows(numbered), prompter(chat=False), LABELS, 259).items
    assert TokenClassification().labels(named, [rows(numbered)]) == LABELS
    assert item["labels"] == [0, 2]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"tokens": ["a"]}, "no column 'tags'"),
        ({"tokens": ["a"], "tags": ["O", "O"]}, "a tag for every word"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "'tokens' is no list"),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, "a word is no text"),
        ({"tokens": ["a"], "tags": ["B-Y"]}, "label out of range"),
        ({"tokens": [], "tags": []}, "empty"),
    ],
)
def test_mistakes_are_told_with_their_line(row, told):
    with pytest.raises(DataError, match=rf"d\.jsonl:2: .*{told}|{told}"):
        TokenClassification().labels(DataSection(train="x", labels=LABELS), [rows(ROW, row)])
