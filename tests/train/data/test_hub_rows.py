from __future__ import annotations

import json

import pytest

from afina.errors import DataError, RecipeError
from afina.train.data.hub_rows import _named, parse
from afina.train.data.split import rows_of
from afina.train.report.events import Reporter


@pytest.fixture
def folder(tmp_path):
    """A data set as the hub holds them: a card with configs, Parquet and JSONL files by split."""
    import datasets

    (tmp_path / "set" / "data").mkdir(parents=True)
    labels = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"text": datasets.Value("string"), "label": labels, "tags": datasets.List(labels)})
    for split, n in (("train", 6), ("test", 2)):
        values = {"text": [f"t{i}" for i in range(n)], "label": [i % 2 for i in range(n)], "tags": [[0, 1]] * n}
        part = datasets.Dataset.from_dict(values, features=features)
        part.to_parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "set"


def test_split_is_train_unless_named_and_classes_have_their_names(folder):
    rows = rows_of(f"hub:{folder}", Reporter())
    assert rows.values[:2] == [{"text": "t0", "label": "no", "tags": ["no", "yes"]},
                               {"text": "t1", "label": "yes", "tags": ["no", "yes"]}]  # fmt: skip
    assert len(rows) == 6
    assert len(rows_of(f"hub:{folder}@test", Reporter())) == 2
    assert len(rows_of(f"hub:{folder}@train[:50%]", Reporter())) == 3
    assert rows.where(1) == f"hub:{folder}:2"


def test_columns_and_samples_go_with_it(folder):
    rows = rows_of(f"hub:{folder}@train#4", Reporter(), {"prompt": "text", "completion": "label"}, seed=1)
    assert len(rows) == 4
    assert set(rows.values[0]) == {"prompt", "completion", "tags"}


def test_jsonl_folders_are_data_sets_too(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    assert rows_of(f"hub:{tmp_path}", Reporter()).values == [{"prompt": "a", "completion": "b"}]


def test_unknown_split_and_malformed_names_are_told(folder):
    with pytest.raises(DataError, match=r"(?s)cannot load the data set.*dev"):
        rows_of(f"hub:{folder}@dev", Reporter())
    with pytest.raises(RecipeError, match="malformed"):
        rows_of("hub:a/b/c/d", Reporter())


def test_owner_name_config_and_split_are_told_apart():
    assert parse("hub:owner/name") == ("owner/name", None, "train")
    assert parse("hub:owner/name/config@test[:5%]") == ("owner/name", "config", "test[:5%]")
    assert parse("hub:name@validation") == ("name", None, "validation")


@pytest.mark.parametrize("source", ["hub:", "hub:/name", "hub:owner/", "hub:a//c", "hub:a/b/c/d"])
def test_malformed_name_of_a_data_set_is_refused(source):
    with pytest.raises(RecipeError, match="malformed data set"):
        parse(source)
    assert parse("hub:a/b/c") == ("a/b", "c", "train")


def test_folder_may_lie_at_home_and_has_no_config(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a" / "b" / "c" / "d").mkdir(parents=True)
    assert parse("hub:~/a/b/c/d@test") == (str(tmp_path / "a" / "b" / "c" / "d"), None, "test")
    assert parse(f"hub:{tmp_path}") == (str(tmp_path), None, "train")


def test_numbers_of_classes_become_names_wherever_they_stand():
    import datasets

    label = datasets.ClassLabel(names=["no", "yes"])
    assert (_named(1, label), _named(0, label), _named(-1, label), _named(None, label)) == ("yes", "no", -1, None)
    assert _named([1, -1], datasets.List(label)) == ["yes", -1]
    assert _named(None, datasets.List(label)) is None
    assert _named(1, datasets.Value("int64")) == 1


def test_split_without_rows_is_refused(folder, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"text": []}))
    with pytest.raises(DataError, match="has no rows"):
        rows_of(f"hub:{folder}", Reporter())


def test_failure_to_load_is_told_in_its_first_line(folder, monkeypatch):
    import datasets

    for error, told in ((ValueError("first\nsecond"), "got: first"), (OSError(), "got: OSError")):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(DataError, match=told) as caught:
            rows_of(f"hub:{folder}", Reporter())
        assert "second" not in str(caught.value)
    long = ValueError("x" * 300)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(long))
    with pytest.raises(DataError) as caught:
        rows_of(f"hub:{folder}", Reporter())
    assert "x" * 200 in str(caught.value)
    assert "x" * 201 not in str(caught.value)


def test_run_on_a_hub_data_set_reports_what_it_read(folder, tmp_path, models_of_classifier, child):
    from ..loop.test_run import train

    result, _ = child(train, models_of_classifier)
    report = json.loads((result.folder / "report.json").read_text())
    assert report["after"]["rows"] == 2
    assert len(report["data_sha256"]) == 2


@pytest.fixture
def models_of_classifier(folder, tmp_path, model_folder):
    from .. import tiny

    return tiny.write_recipe(
        tmp_path, model_folder, task="sequence_classification", training__max_steps=2,
        data={"train": f"hub:{folder}", "eval": f"hub:{folder}@test", "max_length": 16},
    )  # fmt: skip
