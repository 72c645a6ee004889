from __future__ import annotations

from afina.train.report.scores import Scores


def test_scores_survive_json():
    scores = Scores(0.5, 3, 1.0, 0.4, 1.0, 0.6, (("p", "e", "g"),))
    assert Scores.from_dict(scores.as_dict()) == scores
