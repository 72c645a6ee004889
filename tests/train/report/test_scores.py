from __future__ import annotations

from afina.train.report.scores import Scores


def test_scores_survive_json():
    scores = Scores(0.5, 3, 1.0, 0.4, 1.0, 0.6, (("p", "e", "g"),), wrong=(("q", "e", "f"),), confusion={"e": {"f": 1}})
    assert Scores.from_dict(scores.as_dict()) == scores


def test_scores_of_before_there_were_wrong_rows_are_read():
    old = {key: value for key, value in Scores(0.5, 3).as_dict().items() if key not in ("wrong", "confusion")}
    assert Scores.from_dict(old) == Scores(0.5, 3)
