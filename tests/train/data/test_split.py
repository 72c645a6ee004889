"""Which rows are trained on and which are held out."""

from __future__ import annotations

import json

import pytest

from afina.errors import DataError, RecipeError
from afina.train.data.split import Split, read_split, rows_of
from afina.train.recipe.settings import load_recipe

from .. import tiny


class Told:
    """Keeps what a reader says."""

    def __init__(self):
        self.notes, self.warnings = [], []

    def note(self, text):
        self.notes.append(text)

    def warn(self, text):
        self.warnings.append(text)


def split_of(tmp_path, told=None, n=24, **data):
    own = {f"data__{key}": value for key, value in data.items()}
    path = tiny.write_recipe(tmp_path, tmp_path, **{"data__eval": None, **own})
    tiny.write_rows(tmp_path / "train.jsonl", n)
    return read_split(load_recipe(str(path)), told or Told())


def numbers(rows):
    return [int(row["text"][1:]) for row in rows.values]


@pytest.mark.parametrize(
    ("n", "share", "held_out"), [(24, 0.25, 6), (24, 0.01, 1), (2, 0.1, 1), (1, 0.5, None), (24, 0, None)]
)
def test_share_of_the_rows_is_set_aside(tmp_path, n, share, held_out):
    split = split_of(tmp_path, n=n, eval_split=share)
    if held_out is None:
        assert split.held_out is None
        assert split.parts == [split.train]
        assert numbers(split.train) == list(range(n))
        return
    assert split.parts == [split.train, split.held_out]
    assert len(split.held_out) == held_out
    parts = [numbers(part) for part in split.parts]
    assert sorted(parts[0] + parts[1]) == list(range(n))
    assert all(part == sorted(part) for part in parts)  # in the file's order


def test_rows_set_aside_are_drawn_by_the_seed(tmp_path):
    first = numbers(split_of(tmp_path, eval_split=0.25).held_out)
    assert first == numbers(split_of(tmp_path, eval_split=0.25).held_out)
    assert first != list(range(6))
    path = tiny.write_recipe(tmp_path, tmp_path, data__eval=None, data__eval_split=0.25)
    recipe = load_recipe(str(path))
    recipe.training.seed += 1
    assert numbers(read_split(recipe, Told()).held_out) != first


def test_rows_that_are_named_are_held_out_and_none_set_aside(tmp_path):
    told = Told()
    split = split_of(tmp_path, told, eval=str(tiny.write_rows(tmp_path / "e.jsonl", 5, start=100)), eval_split=0.5)
    assert (len(split.train), numbers(split.held_out)) == (24, [100, 101, 102, 103, 104])
    assert told.warnings == []


def test_first_rows_of_either_part_may_be_taken(tmp_path):
    file = str(tiny.write_rows(tmp_path / "e.jsonl", 5, start=100))
    split = split_of(tmp_path, eval=file, max_train_rows=3, max_eval_rows=2)
    assert (numbers(split.train), numbers(split.held_out)) == ([0, 1, 2], [100, 101])


def test_held_out_rows_that_are_trained_on_are_counted(tmp_path):
    told = Told()
    rows = [
        {"label": "x", "text": "n3"},
        {"text": "n3", "label": "odd", "task": 0},
        {"task": 0, "label": "odd", "text": "n3"},
    ]
    (tmp_path / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    split_of(tmp_path, told, eval=str(tmp_path / "e.jsonl"))
    (warning,) = told.warnings
    assert warning.startswith("2 of 3 held-out rows are also in the training rows")


def test_sets_are_told_with_their_weights_and_each_is_held_out(tmp_path):
    told = Told()
    sets = [{"path": str(tiny.write_rows(tmp_path / f"{name}.jsonl", 8, start=at)), "weight": weight}
            for name, at, weight in (("a", 0, 1), ("b", 100, 2))]  # fmt: skip
    split = split_of(tmp_path, told, train=sets, eval_split=0.25)
    assert (split.train.names.count("a"), split.train.names.count("b")) == (6, 12)
    assert [note for note in told.notes if note.startswith("data set")] == [
        "data set a: 6 rows, with weight 1 6 an epoch", "data set b: 6 rows, with weight 2 12 an epoch",
    ]  # fmt: skip
    held_out = split_of(tmp_path, train=sets, eval_split=0).held_out
    assert held_out is None
    both = [{"path": str(tmp_path / "a.jsonl")}, {"path": str(tmp_path / "b.jsonl"), "name": "c"}]
    named = split_of(tmp_path, eval=both).held_out
    assert named.names == ["a"] * 8 + ["c"] * 8
    with pytest.raises(RecipeError, match="weight 2"):
        split_of(tmp_path, eval=sets)


def drawn(tmp_path, suffix, **options):
    told = Told()
    file = tiny.write_rows(tmp_path / "d.jsonl", 6)
    return numbers(rows_of(f"{file}{suffix}", told, **options)), told.notes


def test_number_behind_a_path_draws_as_many_rows_in_the_files_order(tmp_path):
    found, notes = drawn(tmp_path, "#4", seed=3)
    assert len(found) == 4
    assert found == sorted(set(found))
    assert notes[0].endswith("4 of 6 rows, drawn with seed 3")
    assert notes[1].endswith("4 rows of text and label")
    assert drawn(tmp_path, "#4", seed=3)[0] == found
    assert any(drawn(tmp_path, "#4", seed=s)[0] != found for s in range(3))
    for suffix in ("#6", "#7"):
        found, notes = drawn(tmp_path, suffix)
        assert found == list(range(6))
        assert "all 6 taken" in notes[0]
    found, notes = drawn(tmp_path, "")
    assert len(notes) == 1
    with pytest.raises(DataError, match="#0: a sample of no rows"):
        drawn(tmp_path, "#0")
    (tmp_path / "d.jsonl#x").mkdir()
    with pytest.raises(DataError, match="no data files"):
        rows_of(f"{tmp_path / 'd.jsonl#x'}", Told())


def test_shape_of_rows_is_said_or_their_columns(tmp_path):
    told = Told()
    (tmp_path / "d.jsonl").write_text('{"b": 1, "a": 2}\n')
    rows_of(str(tmp_path / "d.jsonl"), told)
    (tmp_path / "d.csv").write_text("text;label\na;b\n")
    rows_of(str(tmp_path / "d.csv"), told)
    assert told.notes[0].endswith("1 rows of columns b, a")
    assert any(note.startswith(f"{tmp_path / 'd.csv'}: ") and ";" in note for note in told.notes[1:-1])


def test_split_without_held_out_rows_has_one_part(tmp_path):
    rows = split_of(tmp_path, eval_split=0).train
    assert Split(rows, None).parts == [rows]
