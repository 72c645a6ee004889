from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from afina.errors import AfinaError, DataError, RecipeError
from afina.train.data.encode import encode_answers
from afina.train.data.formats import recognise
from afina.train.data.joined import Joined, joined, named_sets, weighted
from afina.train.data.prompts import Prompter
from afina.train.data.rows import Rows
from afina.train.data.split import read_split
from afina.train.loop.claimed import spare_inputs
from afina.train.recipe.sections import DataSection, DataSet
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


def test_prompts_with_answers_and_conversations_are_rendered_each_by_its_own_form(tmp_path):
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}] * 2
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    forms = {
        "alpaca": {"instruction": "say", "input": "it", "output": "so", "system": "brief", "history": [["h", "H"]]},
        "chat": {"messages": talk}, "sharegpt": {"conversations": turns}, "plain": {"prompt": "p", "completion": "c"},
    }  # fmt: skip
    for order in (list(forms), list(reversed(forms))):
        files = {name: tmp_path / f"{name}.jsonl" for name in order}
        for name, file in files.items():
            file.write_text(f"{json.dumps(forms[name])}\n" * 2)
        own = {"data__prompt": None, "data__completion": None, "data__labels": None, "data__eval_split": 0}
        rows = read_split(recipe_of(tmp_path, files, *[1] * 4, **own), Reporter()).train
        prompter = Prompter(DataSection(train="x"), tiny.tokenizer())
        items = encode_answers(rows, prompter, 259).items
        whole = dict(zip(rows.names, (prompter.tokenizer.decode(item["input_ids"]) for item in items), strict=True))
        trained = dict(zip(rows.names, ([i for i in item["labels"] if i >= 0] for item in items), strict=True))
        user, end = "<|user|>", "<eos>\n<|user|>"
        assert whole == {
            "alpaca": f"<|system|>brief\n{user}h\n<|assistant|>H{end}say\n\nit\n<|assistant|>so<eos>",
            "chat": f"{user}q\n<|assistant|>a{end}q\n<|assistant|>a<eos>",
            "sharegpt": f"{user}Q\n<|assistant|>A<eos>", "plain": f"{user}p\n<|assistant|>c<eos>",
        }  # fmt: skip
        answers = {name: prompter.tokenizer.decode(ids) for name, ids in trained.items()}
        assert answers == {"alpaca": "H<eos>so<eos>", "chat": "a<eos>a<eos>", "sharegpt": "A<eos>", "plain": "c<eos>"}
        asked = [prompter.prompt(rows, i, prompter.question_format(rows, i)) for i in range(len(rows))]
        assert asked[rows.names.index("chat")].endswith("q\n<|assistant|>")
        assert asked[rows.names.index("plain")] == f"{user}p\n<|assistant|>"


def held(name, *values):
    return name, Rows(Path(f"{name}.jsonl"), list(values), [2 * i + 1 for i in range(len(values))])


def test_sets_one_after_the_other_keep_names_files_and_what_was_read():
    parts = [held("a", {"x": 1}, {"x": 2}), held("b", {"x": 3})]
    parts[1][1].get(0, "x")
    rows = joined(parts)
    assert [v["x"] for v in rows.values] == [1, 2, 3]
    assert (rows.names, rows.lines, str(rows.path)) == (["a", "a", "b"], [1, 3, 1], "a + b")
    assert (rows.where(1), rows.where(2), rows.read) == ("a.jsonl:3", "b.jsonl:1", {"x"})
    assert [v["x"] for v in rows.take(1, None).values] == [2, 3]


def test_set_of_another_form_is_told_with_its_name_and_that_of_the_first():
    sets = [held("a", {"text": "t", "label": "l"}), held("b", {"text": "t", "label": "l"}), held("c", {"messages": []})]
    with pytest.raises(DataError, match=r"c \(c\.jsonl\): data sets of different forms") as caught:
        joined(sets)
    assert "got: chat" in str(caught.value)
    assert "labelled, as a has" in str(caught.value)


def test_conversations_of_one_tool_are_left_as_they_are():
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    rows = joined([held("a", {"conversations": turns}), held("b", {"conversations": turns})])
    assert all("conversations" in row for row in rows.values)


def test_sets_have_the_recipes_names_or_those_of_their_files():
    sets = [DataSet(path="x/a.jsonl#50"), DataSet(path="y/a.jsonl", name="b")]
    assert [(name, one.path) for name, one in named_sets(sets, "data.train")] == [
        ("a", "x/a.jsonl#50"), ("b", "y/a.jsonl"),
    ]  # fmt: skip
    for bad, told in (([], "without one"), ([sets[0], DataSet(path="z/a.csv")], "got: a")):
        with pytest.raises(RecipeError, match=told):
            named_sets(bad, "data.train")


@pytest.mark.parametrize(("weight", "count"), [(1, 5), (0.4, 2), (2.4, 12), (3, 15), (0.1, 0)])
def test_weight_is_how_often_rows_come(weight, count):
    _, rows = held("a", *({"n": i} for i in range(5)))
    if not count:
        with pytest.raises(DataError, match="a weight that leaves no row"):
            weighted(rows, weight, 0)
        return
    found = [v["n"] for v in weighted(rows, weight, 0).values]
    whole = int(weight) * 5
    assert found[:whole] == list(range(5)) * int(weight)
    assert found[whole:] == sorted(set(found[whole:]))
    assert len(found) == count


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
