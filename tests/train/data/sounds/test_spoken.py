from __future__ import annotations

import pytest

from afina.errors import DataError
from afina.train.data.sounds import spoken
from afina.train.report.events import Reporter


@pytest.fixture
def sentences(monkeypatch):
    """What would be spoken."""
    out = []

    def speak(work, given, reporter):
        out.extend(given)
        return work

    monkeypatch.setattr(spoken, "_spoken", speak)
    return out


@pytest.mark.parametrize("make", [spoken.welsh_numbers, spoken.english_digits])
def test_held_out_voices_are_none_that_are_learnt_from(make, sentences, tmp_path):
    rows, _ = make(tmp_path, 50, 150, 0, Reporter())
    assert [row["audio"] for row in rows] == [name for name, *_ in sentences]
    held_out, learnt = ({voice.split("+")[1] for _, _, voice, *_ in part} for part in (sentences[:50], sentences[50:]))
    assert held_out.isdisjoint(learnt)
    assert min(len(held_out), len(learnt)) > 4
    assert len({row["audio"] for row in rows}) == 200
    again, _ = make(tmp_path, 50, 150, 0, Reporter())
    assert rows == again
    assert sentences[:200] == sentences[200:]


def test_texts_say_what_the_numbers_are(sentences, tmp_path):
    rows, _ = spoken.welsh_numbers(tmp_path, 5, 40, 0, Reporter())
    for row, (name, text, *_) in zip(rows, sentences, strict=True):
        digits = [spoken._WELSH.index(word) for word in row["text"].split()]
        assert name == f"{''.join(map(str, digits))}.wav"
        assert text == row["text"]
    rows, _ = spoken.english_digits(tmp_path, 5, 40, 0, Reporter())
    assert all(
        spoken._ENGLISH[int(row["label"])] == text for row, (_, text, *_) in zip(rows, sentences[45:], strict=True)
    )


def test_a_library_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(spoken, "locate", lambda reference, reporter: tmp_path)
    with pytest.raises(DataError, match="cannot speak here"):
        spoken.welsh_numbers(tmp_path, 1, 1, 0, Reporter())
