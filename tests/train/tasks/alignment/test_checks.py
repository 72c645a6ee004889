from __future__ import annotations

import pytest

from afina.errors import AfinaError, DataError
from afina.train.recipe.sections import RewardRule
from afina.train.tasks.alignment.checks import total

PROMPTS = ["p", "q"]
ROWS = [{"answer": "Cat", "label": 1}, {"answer": "dog", "label": 2}]


@pytest.mark.parametrize(
    ("rule", "answers", "rewards"),
    [
        ("exact", [" cat ", "cat"], [1, 0]), ("exact:label", ["1", "1"], [1, 0]),
        ("json", ['{"a": [1]}', "{a"], [1, 0]),
        ("format:<a>.*</a>", ["<a>x\ny</a>", "<a>x"], [1, 0]), ("format:a:b", ["a:b", "ab"], [1, 0]),
    ],
)  # fmt: skip
def test_checks_tell_good_from_bad(rule, answers, rewards):
    assert total([rule])(PROMPTS, answers, ROWS) == rewards


def test_rewards_are_summed_by_weight():
    rules = ["exact", RewardRule(use="format:c.*", weight=0.5)]
    assert total(rules)(PROMPTS, ["cat", "car"], ROWS) == [1.5, 0.5]


def test_functions_of_either_form_are_called(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def own(prompts, answers, rows):\n    return [len(a) + r['label'] for a, r in zip(answers, rows)]"
                    "\n"
                    "def trl(completions, label, **kwargs):\n    return [-n for n in label]\n")  # fmt: skip
    assert total([f"{file}:own"])(PROMPTS, ["ab", "c"], ROWS) == [3, 3]
    assert total([f"{file}:trl"])(PROMPTS, ["ab", "c"], ROWS) == [-1, -2]


MISTAKES = {
    "none": ([], "reward is needed"), "unknown": (["exakt"], "did you mean 'exact'"),
    "pattern": (["format:("], "malformed pattern"), "no file": (["DIR/nothing.py:f"], "no such file"),
    "no function": (["DIR/mine.py:ow"], "did you mean 'own'"), "broken file": (["DIR/broken.py:f"], "NameError"),
    "raises": (["DIR/mine.py:raises"], "KeyError"), "too few": (["DIR/mine.py:few"], "2 finite numbers"),
    "no number": (["DIR/mine.py:text"], "2 finite numbers"), "no column": (["exact:nothing"], "no column 'nothing'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name, tmp_path):
    (tmp_path / "broken.py").write_text("f = nothing\n")
    (tmp_path / "mine.py").write_text(
        "def own(p, a, r):\n    return [0, 0]\ndef raises(p, a, r):\n    return {}['x']\n"
        "def few(p, a, r):\n    return [0]\ndef text(p, a, r):\n    return ['a', float('nan')]\n"
    )
    rules, told = MISTAKES[name]
    with pytest.raises((AfinaError, DataError), match=told):
        total([rule.replace("DIR", str(tmp_path)) for rule in rules])(PROMPTS, ["a", "b"], ROWS)
