from __future__ import annotations

import pytest

from afina.errors import ConfigError, RecipeError
from afina.train.recipe.settings import embedded_recipes, load_recipe
from afina.train.recipe.yamlfile import dump

MINIMAL = "model: some/model\ndata: rows.jsonl\noutput: out\n"


def write(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(path, *overrides):
    with pytest.raises((RecipeError, ConfigError)) as caught:
        load_recipe(path, overrides)
    text = str(caught.value)
    assert len(text.splitlines()) <= 4
    return text


def test_flat_keys_and_other_tools_names_mean_the_same(tmp_path):
    flat = write(
        tmp_path,
        "model_name_or_path: some/model\ndataset: rows.jsonl\noutput_dir: out\nadapter: lora\nlora_r: 4\n"
        "per_device_train_batch_size: 3\nnum_train_epochs: 2.0\ncutoff_len: 77\nlr: 1e-3\n",
    )
    recipe = load_recipe(flat)
    assert recipe.method.fields == {"r": 4}
    assert (recipe.training.batch_size, recipe.training.epochs, recipe.data.max_length) == (3, 2.0, 77)
    assert recipe.training.learning_rate == 1e-3


@pytest.mark.parametrize("name", ["cutoff_len", "max_seq_length", "max_seq_len", "sequence_len", "max_length"])
def test_five_spellings_of_the_sequence_length(tmp_path, name):
    assert load_recipe(write(tmp_path, MINIMAL), [(name, "55")]).data.max_length == 55


def test_override_wins_over_the_file(tmp_path):
    path = write(tmp_path, MINIMAL + "training:\n  batch_size: 2\n")
    assert load_recipe(path, [("training.batch_size", "5")]).training.batch_size == 5


def test_override_of_an_alias_within_its_section(tmp_path):
    path = write(tmp_path, MINIMAL)
    assert load_recipe(path, [("training.num_train_epochs", "3")]).training.epochs == 3


def test_unknown_key_names_the_nearest_and_the_line(tmp_path):
    text = refused(write(tmp_path, MINIMAL + "training:\n  batch_sise: 2\n"))
    assert "batch_sise" in text
    assert "'batch_size'" in text
    assert "r.yaml:5" in text


def test_unknown_override_names_the_nearest(tmp_path):
    assert "'learning_rate'" in refused(write(tmp_path, MINIMAL), ("learnin_rate", "1e-3"))


def test_unknown_method_setting_names_the_nearest(tmp_path):
    assert "lora_alpha" in refused(write(tmp_path, MINIMAL + "method:\n  type: lora\n  lora_alfa: 3\n"))


def test_settings_of_the_method_may_stand_alone_wherever_it_is_named(tmp_path):
    path = write(tmp_path, "use_rslora: true\n" + MINIMAL + "method: lora\n")
    assert load_recipe(path, [("r", "3")]).method.fields == {"use_rslora": True, "r": 3}


def test_unknown_method_is_refused(tmp_path):
    assert "lorra" in refused(write(tmp_path, MINIMAL), ("method", "lorra"))


def test_wrong_type_is_told_with_its_line(tmp_path):
    text = refused(write(tmp_path, MINIMAL + "training:\n  batch_size: many\n"))
    assert "training.batch_size" in text
    assert "r.yaml:5" in text
    assert "'many' (str)" in text


def test_number_as_text_is_not_coerced(tmp_path):
    assert "training.batch_size" in refused(write(tmp_path, MINIMAL + 'training:\n  batch_size: "8"\n'))


def test_wrong_method_value_is_refused(tmp_path):
    assert "r" in refused(write(tmp_path, MINIMAL + "method:\n  type: lora\n  r: 0\n"))


def test_missing_key_is_named(tmp_path):
    assert "model.path" in refused(write(tmp_path, "model: {dtype: float32}\ndata: rows.jsonl\noutput: out\n"))


def test_key_given_twice_is_refused_with_its_line(tmp_path):
    text = refused(write(tmp_path, MINIMAL + "training:\n  seed: 1\n  seed: 2\n"))
    assert "'seed'" in text
    assert "r.yaml:6" in text


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "", "model: [\n", "model: !!python/object/apply:os.system [ls]\n", "1: 2\n"]
)
def test_what_is_no_recipe_is_refused(tmp_path, text):
    refused(write(tmp_path, text))


def test_batch_size_alone_means_the_training(tmp_path):
    assert load_recipe(write(tmp_path, MINIMAL), [("batch_size", "5")]).training.batch_size == 5


def test_every_key_but_two_is_in_one_section_only():
    """So that each may stand alone on the command line."""
    from collections import Counter

    from afina.train.recipe.sections import (
        DataSection,
        EvaluationSection,
        ModelSection,
        OutputSection,
        TrainingSection,
    )

    sections = (DataSection, EvaluationSection, ModelSection, OutputSection, TrainingSection)
    counts = Counter(key for section in sections for key in section.model_fields)
    assert [key for key, n in counts.items() if n > 1] == ["chat_template", "batch_size"]


def test_missing_recipe_lists_the_embedded_ones(tmp_path):
    text = refused("tweet")
    assert "'tweets'" in text
    assert "tweets-classifier" in text


@pytest.mark.parametrize("name", ["tweets", "tweets-classifier"])
def test_embedded_recipes_are_valid_and_described(name):
    assert load_recipe(name).output.dir == f"runs/{name}"
    assert "LoRA" in embedded_recipes()[name]


@pytest.mark.parametrize("name", ["tweets", "tweets-classifier"])
def test_written_recipe_reads_back_equal(tmp_path, name):
    recipe = load_recipe(name, [("data.prompt", "'a: #{text}\n- \"b\"'"), ("learning_rate", "1e-05"), ("output", "/o")])
    assert load_recipe(write(tmp_path, dump(recipe))) == recipe


def test_paths_count_from_the_recipe_and_overrides_from_here(tmp_path, monkeypatch):
    (tmp_path / "cfg" / "base").mkdir(parents=True)
    text = "model: base\ndata: {train: rows.jsonl#5, eval: ../held.csv}\noutput: out\n"
    (tmp_path / "cfg" / "r.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("cfg/r.yaml")
    assert (recipe.model.path, recipe.output.dir) == ("cfg/base", "cfg/out")
    assert (recipe.data.train, recipe.data.eval) == ("cfg/rows.jsonl#5", "cfg/../held.csv")
    recipe = load_recipe("cfg/r.yaml", [("data.train", "mine.jsonl"), ("output", "runs/x"), ("model", "./other")])
    assert (recipe.model.path, recipe.data.train, recipe.output.dir) == ("./other", "mine.jsonl", "runs/x")
    assert load_recipe(str(tmp_path / "cfg") + "/r.yaml").data.train == f"{tmp_path}/cfg/rows.jsonl#5"


@pytest.mark.parametrize(
    "kept",
    ["package:llm/model", "sdist:x/rows.csv", "embedded:tweets/x.jsonl", "hub:owner/name@train[:10%]", "/a/b.jsonl"],
)
def test_references_and_absolute_paths_stay_as_they_are(tmp_path, kept):
    assert load_recipe(write(tmp_path, MINIMAL.replace("rows.jsonl", f"'{kept}'"))).data.train == kept


@pytest.mark.parametrize(
    ("written", "is_path"),
    [("owner/name", False), ("bert-base", False), ("./m", True), ("a/b/c", True), ("m.gguf", True)],
)
def test_hub_ids_are_told_from_paths(tmp_path, written, is_path):
    found = load_recipe(write(tmp_path, MINIMAL.replace("some/model", written))).model.path
    assert found == (f"{tmp_path}/{written.removeprefix('./')}" if is_path else written)


def test_a_hub_data_set_in_a_folder_counts_from_the_recipe(tmp_path):
    (tmp_path / "set").mkdir()
    assert (
        load_recipe(write(tmp_path, MINIMAL.replace("rows.jsonl", "hub:set@test"))).data.train
        == f"hub:{tmp_path}/set@test"
    )


def test_paths_of_a_run_can_be_read_from_anywhere(tmp_path, monkeypatch):
    from afina.train.recipe.anchoring import absolute

    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(
        write(tmp_path, MINIMAL), [("data.train", "rows.jsonl#7"), ("data.eval", "e.csv"), ("output", "o")]
    )
    absolute(recipe)
    assert (recipe.data.train, recipe.data.eval) == (f"{tmp_path}/rows.jsonl#7", f"{tmp_path}/e.csv")
    assert (recipe.output.dir, recipe.model.path) == (f"{tmp_path}/o", "some/model")


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("methdo.type", "method.type"), ("trainig.learning_rate", "training.learning_rate"),
     ("methd.lora_alpha", "method.lora_alpha"),
     ("learning_rte", "learning_rate"), ("lora_alfa", "lora_alpha")],
)  # fmt: skip
def test_a_key_that_is_nearly_one_is_answered_in_its_own_form(wrong, meant):
    with pytest.raises(RecipeError) as error:
        load_recipe("tweets", [(wrong, "1")])
    assert error.value.fix == f"did you mean {meant!r}?"
