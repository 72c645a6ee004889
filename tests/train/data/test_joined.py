from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from afina.errors import AfinaError, DataError
from afina.train.data.formats import recognise
from afina.train.data.joined import Joined, weighted
from afina.train.data.rows import Rows
from afina.train.data.split import read_split
from afina.train.loop.claimed import spare_inputs
from afina.train.recipe.settings import load_recipe
from afina.train.recipe.yamlfile import dump
from afina.train.report.events import Reporter

from .. import tiny

SETS = (("a", 20), ("b", 8))


@pytest.fixture
def files(tmp_path):
    return {name: tiny.write_rows(tmp_path / f"{name}.jsonl", n, start=100 * i) for i, (name, n) in enumerate(SETS)}


def recipe_of(tmp_path, files, *weights, **changes):
    sets = [{"path": str(path), "weight": w} for path, w in zip(files.values(), weights, strict=True)]
    return load_recipe(str(tiny.write_recipe(tmp_path, Path("m"), data__train=sets, data__eval=None, **changes)))


def test_weights_say_how_often_rows_come_and_every_set_is_held_out(tmp_path, files):
    recipe = recipe_of(tmp_path, files, 0.5, 2, data__eval_split=0.25)
    split = read_split(recipe, Reporter())
    assert Counter(split.train.names) == {"a": 8, "b": 12}  # of 15, half to the even; of 6, twice
    assert Counter(split.held_out.names) == {"a": 5, "b": 2}
    assert not {str(v) for v in split.train.values} & {str(v) for v in split.held_out.values}
    again = read_split(recipe, Reporter())
    assert (again.train.values, again.held_out.values) == (split.train.values, split.held_out.values)


def test_rows_keep_their_file_and_line(tmp_path, files):
    split = read_split(recipe_of(tmp_path, files, 1, 1, data__eval_split=0), Reporter())
    assert split.train.where(0) == f"{files['a']}:1"
    assert split.train.where(20) == f"{files['b']}:1"
    assert split.train.paths == list(files.values())
    picked = split.train.take(19, 21).pick([1])
    assert isinstance(picked, Joined)
    assert (picked.names, picked.where(0)) == (["b"], f"{files['b']}:1")


def test_weight_of_one_is_the_rows_themselves():
    rows = Rows(Path("x"), [{"n": i} for i in range(5)], list(range(5)))
    assert weighted(rows, 1.0, 0).values == rows.values
    assert [v["n"] for v in weighted(rows, 2.4, 0).values[:10]] == [*range(5), *range(5)]
    assert len(weighted(rows, 2.4, 0)) == 12
    with pytest.raises(DataError, match="leaves no row"):
        weighted(rows, 0.01, 0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train": []}, "without one"), ({"train": [{"path": "A"}, {"path": "A"}]}, "of one name"),
        ({"train": [{"path": "A", "weight": 0}]}, r"data\.train\.weight"),
        ({"train": [{"path": "A", "wheight": 1}]}, "unknown key 'wheight' in data.train\nfix: did you mean 'weight'"),
        ({"train": ["A"]}, r"expected: \{path: \.\.\., weight"),
        ({"train": [{"path": "A"}], "eval": [{"path": "B", "weight": 2}]}, "measured once each"),
        ({"train": [{"path": "A"}], "max_train_rows": 3}, "first set"),
        ({"train": [{"path": "A"}, {"path": "C"}]}, "different forms"),
    ],
)  # fmt: skip
def test_mistakes_are_refused(tmp_path, files, changes, told):
    other = tmp_path / "c.jsonl"
    other.write_text(json.dumps({"prompt": "p", "completion": "c"}) + "\n")
    text = json.dumps(changes)
    for mark, path in (("A", files["a"]), ("B", files["b"]), ("C", other)):
        text = text.replace(f'"{mark}"', json.dumps(str(path)))
    own = {f"data__{key}": value for key, value in json.loads(text).items()}
    with pytest.raises(AfinaError, match=told):
        read_split(load_recipe(str(tiny.write_recipe(tmp_path, Path("m"), **{"data__eval": None, **own}))), Reporter())


def test_conversations_of_two_tools_are_one_form(tmp_path):
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    (tmp_path / "s.jsonl").write_text(json.dumps({"conversations": turns, "system": "brief"}) + "\n")
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "o.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    for order in ("so", "os"):
        files = {name: tmp_path / f"{name}.jsonl" for name in order}
        rows = read_split(recipe_of(tmp_path, files, 1, 1, data__eval_split=0), Reporter()).train
        found, shape = recognise(rows)
        assert shape == "chat"
        assert [[(m["role"], m["content"]) for m in row["messages"]] for row in found.values] == [
            [("user", "q"), ("assistant", "a")]
        ] * 2
        assert [row.get("system") for row in found.values].count("brief") == 1


def test_recipe_with_sets_is_written_and_read_back(tmp_path, files):
    recipe = recipe_of(tmp_path, files, 0.5, 2)
    (tmp_path / "again.yaml").write_text(dump(recipe))
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe


def test_output_over_the_rows_of_a_set_is_refused(tmp_path, files):
    recipe = recipe_of(tmp_path, files, 1, 1)
    recipe.output.dir = str(tmp_path)
    with pytest.raises(AfinaError, match=r"overwrite the rows of a\.jsonl"):
        spare_inputs(recipe, read_split(recipe, Reporter()), None)


def told(recipe):
    from afina.train.loop.run import run

    result = run(recipe, Reporter())
    return result.report, (result.folder / "README.md").read_text(), str(result.after)


def test_loss_is_told_by_set(tmp_path, files, model_folder, child):
    recipe = recipe_of(tmp_path, files, 1, 1)
    recipe.model.path = str(model_folder)
    report, card, words = child(told, recipe)
    after = report["after"]
    assert set(after["sets"]) == {"a", "b"}
    # Two rows of one set and one of the other; the mean over rows is near that over tokens.
    assert (2 * after["sets"]["a"] + after["sets"]["b"]) / 3 == pytest.approx(after["loss"], rel=0.1)
    assert f"| loss on b | {report['before']['sets']['b']:.3f} | {after['sets']['b']:.3f} |" in card
    assert "by data set a " in words
