from __future__ import annotations

import pytest

from afina.errors import AfinaError
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
    "too few": (["DIR/mine.py:few"], "1 values"), "no list": (["DIR/mine.py:nothing"], "got: NoneType None"),
    "no number": (["DIR/mine.py:text"], "str 'a' for the row r.jsonl:1"),
    "no finite number": (["DIR/mine.py:nan"], "float nan for the row r.jsonl:2"),
    "no column": (["exact:colour"], "r.jsonl:1: a row has no column 'colour'"),
    "arguments": (["DIR/mine.py:short"], "(answers)"), "left": (["DIR/leaves.py:f"], "SystemExit: 3"),
    "of its own": (["DIR/mine.py:own_error"], "Own: it is"),
}  # fmt: skip
MINE = """
class Own(Exception):
    pass
def own(p, a, r):
    return [0, 0]
def few(p, a, r):
    return [0]
def nothing(p, a, r):
    pass
def text(p, a, r):
    return ['a', 1]
def nan(p, a, r):
    return [1, float('nan')]
def short(answers):
    return [0, 0]
def own_error(p, a, r):
    raise Own('it is\\nof two lines')
def raises(p, a, r):
    return [1 / (row['label'] - 2) for row in r]
def raises_together(p, a, r):
    return {1: [0]}[len(a)]
def raises_as_trl(completions, label, **kwargs):
    return [1 / (n - 2) for n in label]
def numpys(p, a, r):
    import numpy, torch
    return [numpy.float32(.5), torch.tensor(2.)]
def array(p, a, r):
    import numpy
    return numpy.array([1, 2])
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "broken.py").write_text("f = nothing\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def rewarded(folder, *rules):
    reward = total([rule.replace("DIR", str(folder)) for rule in rules])
    return reward(PROMPTS, ["a", "b"], ROWS, ["r.jsonl:1", "r.jsonl:2"])


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name, folder):
    rules, told = MISTAKES[name]
    with pytest.raises(AfinaError) as caught:
        rewarded(folder, *rules)
    message = str(caught.value)
    assert told in message
    assert len(message.splitlines()) <= 4


@pytest.mark.parametrize("name", ["raises", "raises_as_trl"])
def test_what_a_function_raises_is_told_with_its_line_and_the_row(name, folder):
    with pytest.raises(AfinaError) as caught:
        rewarded(folder, f"DIR/mine.py:{name}")
    line = MINE.splitlines().index(next(x for x in MINE.splitlines() if f"def {name}(" in x)) + 2
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{folder}/mine.py:{name}: the reward function raises"
    assert lines[1] == f"got: ZeroDivisionError: division by zero (line {line}), on the answer 'b' to the row r.jsonl:2"


def test_what_no_answer_raises_alone_is_told_without_a_row(folder):
    with pytest.raises(AfinaError, match=r"got: KeyError: 2 \(line \d+\)$"):
        rewarded(folder, "DIR/mine.py:raises_together")


def test_numbers_of_numpy_and_torch_are_numbers(folder):
    assert rewarded(folder, "DIR/mine.py:numpys") == [0.5, 2]
    assert rewarded(folder, "DIR/mine.py:array") == [1, 2]
