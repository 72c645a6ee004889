"""Sounds and labels: what the model takes is what its extractor gives, and what is trained is what is loaded."""

from __future__ import annotations

import json

import pytest
import torch

from afina.core.config import methods
from afina.errors import DataError, RecipeError
from afina.train.base.sound_processor import load_sound_processor
from afina.train.data.rows import read_rows
from afina.train.loop.plans.planning import planned
from afina.train.loop.run import run
from afina.train.recipe.sections import DataSection, ModelSection
from afina.train.report.events import Reporter
from afina.train.tasks import named
from afina.train.use.predictions import predict
from afina.train.use.trained import load_trained

from ... import tiny_sounds
from ...loop.test_run import Heard
from .. import of_files
from ..of_files import LONG

TASK = named("audio_classification")
_OTHERS = pytest.mark.whole("the same way for all; wav2vec 2.0 stands for them")
FEW = [name if name == "wav2vec2" else pytest.param(name, marks=_OTHERS) for name in tiny_sounds.CLASSIFIERS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in tiny_sounds.CLASSIFIERS.items()}


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """A folder of sounds for each of two classes, told apart by pitch; some have two channels, or the model's rate."""
    folder = tmp_path_factory.mktemp("birds")
    for kind in range(2):
        (folder / ("owl", "wren")[kind]).mkdir()
        for i in range(10):
            sound = tiny_sounds.tone(2 * i + kind, rate=16000 if i == 0 else 8000, channels=1 + (i == 1))
            (folder / ("owl", "wren")[kind] / f"{i}.wav").write_bytes(sound)
    return folder


def recipe_of(tmp_path, model, data, **changes):
    return of_files.recipe_of(tmp_path, TASK.name, model, data, 5, **changes)


# -- what the model takes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny_sounds.CLASSIFIERS)
def test_a_batch_is_to_the_bit_what_the_models_extractor_gives(family, folders, birds):
    import soundfile
    from scipy.signal import resample_poly
    from transformers import AutoFeatureExtractor

    rows = read_rows(birds).pick([0, 1, 12])
    processor = load_sound_processor(str(folders[family]), ModelSection(path=""), writes=False)
    items = TASK.encode(rows, TASK.prompter(DataSection(train=""), processor), ["owl", "wren"], 0).items
    batch = TASK.collator(processor)(items)
    sounds = [soundfile.read(birds / row["audio"], dtype="float32", always_2d=True) for row in rows.values]
    given = [
        resample_poly(values.mean(1), 16000 // rate, 1) if rate != 16000 else values[:, 0] for values, rate in sounds
    ]
    padding = {"padding": True} if family == "wav2vec2" else {}
    theirs = AutoFeatureExtractor.from_pretrained(folders[family])(
        given, sampling_rate=16000, return_tensors="pt", **padding
    )
    assert {*batch} == {*theirs, "labels"}
    assert all(torch.equal(batch[key], value) for key, value in theirs.items())
    assert next(iter(theirs.values())).std() > 0.1
    assert batch["labels"].tolist() == [0, 0, 1]


def test_sounds_of_a_data_set_are_taken_as_they_are_stored(folders, monkeypatch, tmp_path):
    import datasets
    import pyarrow
    import pyarrow.parquet

    from afina.train.data.hub_rows import read_hub

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    kinds = datasets.Features({"audio": datasets.Audio(), "label": datasets.ClassLabel(names=["low", "high"])})
    table = {"audio": [{"bytes": tiny_sounds.tone(i), "path": f"{i}.wav"} for i in range(4)], "label": [0, 1, 0, 1]}
    (tmp_path / "set").mkdir()
    pyarrow.parquet.write_table(
        pyarrow.table(table).replace_schema_metadata(kinds.arrow_schema.metadata), tmp_path / "set" / "train.parquet"
    )
    rows = read_hub(f"hub:{tmp_path / 'set'}")
    processor = load_sound_processor(str(folders["whisper"]), ModelSection(path=""), writes=False)
    items = TASK.encode(rows, TASK.prompter(DataSection(train=""), processor), ["low", "high"], 0).items
    assert [item["audio"] for item in items] == [tiny_sounds.tone(i) for i in range(4)]
    assert [item["labels"] for item in items] == [0, 1, 0, 1]


def test_what_was_resampled_averaged_and_cut_is_told(folders, birds):
    processor = load_sound_processor(str(folders["wav2vec2"]), ModelSection(path="", audio_seconds=0.25), writes=False)
    prompter = TASK.prompter(DataSection(train=""), processor)
    encoded = TASK.encode(read_rows(birds), prompter, ["owl", "wren"], 0)
    assert prompter.ledger.lines == [
        "sounds resampled from 8,000 to 16,000 Hz: 18", "sounds of several channels, which are averaged: 2",
    ]  # fmt: skip
    assert encoded.truncated == len(encoded) == 20
    assert TASK.collator(processor)(encoded.items[:2])["input_values"].shape == (2, 4000)


@pytest.mark.parametrize("seconds", [1, 2])
def test_a_whisper_hears_as_long_as_it_is_told(seconds, folders, birds):
    section = ModelSection(path=str(folders["whisper"]), audio_seconds=seconds, dtype="float32")
    processor = load_sound_processor(str(folders["whisper"]), section, writes=False)
    model = TASK.load(section, str(folders["whisper"]), ["owl", "wren"], processor)
    batch = TASK.collator(processor)([{"audio": str(birds / "owl" / "1.wav"), "where": ""}])
    assert batch["input_features"].shape == (1, 8, 100 * seconds)
    assert model.config.max_source_positions == 50 * seconds
    assert model(**batch).logits.isfinite().all()
    whole = TASK.load(ModelSection(path=""), str(folders["whisper"]), ["owl", "wren"],
                      load_sound_processor(str(folders["whisper"]), ModelSection(path=""), writes=False))  # fmt: skip
    positions = whole.encoder.embed_positions.weight
    assert torch.equal(model.encoder.embed_positions.weight, positions[: 50 * seconds])
    assert positions.abs().sum() > 1


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FEW)
def test_a_run_learns_is_loaded_predicts_and_merges(family, folders, birds, tmp_path, child):
    changes = {"model__audio_seconds": 1} if family == "whisper" else {}
    child(learns_and_is_used, recipe_of(tmp_path, folders[family], birds, **changes), birds)


def learns_and_is_used(recipe, birds):
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    from afina.export.merged import merge
    from afina.train.data.sounds.sound_files import heard

    result = run(recipe, Reporter())
    assert result.after.accuracy > 0.7
    assert result.after.loss < 0.8 * result.before.loss
    assert result.after.low < result.after.accuracy <= result.after.high
    assert sum(n for row in result.before.confusion.values() for n in row.values()) == 5
    trained = load_trained(result.folder, Reporter())
    assert trained.labels == ["owl", "wren"]
    done = predict(trained, read_rows(birds), Reporter(), batch_size=6)
    assert done.scores.accuracy > 0.8
    assert TASK.told(trained, str(birds / "wren" / "1.wav"), 0).startswith("wren ")
    assert merge(trained, result.folder / "merged").difference < 1e-4
    # Others load the merged model, and it says the same.
    merged = AutoModelForAudioClassification.from_pretrained(result.folder / "merged").eval()
    extractor = AutoFeatureExtractor.from_pretrained(result.folder / "merged")
    for row in done.rows[::5]:
        sound = heard(str(birds / row["audio"]), "", 16000).values
        probabilities = merged(**extractor(sound, sampling_rate=16000, return_tensors="pt")).logits.softmax(1)[0]
        assert merged.config.id2label[int(probabilities.argmax())] == row["prediction"]
        assert float(probabilities.max()) == pytest.approx(row["probability"], abs=0.02)  # padding is heard a little


def test_a_dry_run_says_what_sounds_will_take(folders, birds, tmp_path, child):
    lines = child(planned, recipe_of(tmp_path, folders["whisper"], birds), Reporter())
    assert any("a step of 5 sounds as 8 x 200 numbers" in line for line in lines)
    assert any(line.startswith("time: training") for line in lines)


@pytest.mark.whole("Whisper resumes among the tasks")
@pytest.mark.parametrize("family", ["wav2vec2", "ast"])
def test_a_run_resumes_to_the_bit(family, folders, birds, tmp_path, child):
    changes = {"training__max_steps": 6, "training__save_steps": 3}
    of_files.resumes_to_the_bit(child, recipe_of(tmp_path, folders[family], birds, **changes))


NOT_OF_SOUNDS = {
    "ADAPTION_PROMPT": "match no module", "TRAINABLE_TOKENS": "embeds no tokens",
    "SHADOW": "not a block of an encoder", "XLORA": "needs experts", "REFT": "width is not known",
    **dict.fromkeys(("CARTRIDGE", "CPT", "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"),
                    "takes no tokens"),
}  # fmt: skip
"""Methods that no classifier of sounds can be trained with, and what they say."""


@pytest.mark.parametrize("name", [
    n if n in ("LORA", "PREFIX_TUNING") else pytest.param(n, marks=LONG)
    for n in methods()
])  # fmt: skip
def test_every_method_trains_on_a_wav2vec_or_says_why_not(name, folders, birds, tmp_path, child):
    changes = of_files.few_steps(name, tmp_path, birds, "audio")
    recipe = recipe_of(tmp_path, folders["wav2vec2"], birds, **changes)
    of_files.trains_or_says_why(child, recipe, NOT_OF_SOUNDS.get(name))


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_read_are_counted_and_the_first_is_named(folders, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.wav").write_bytes(tiny_sounds.tone(i) if i else b"RIFF, but no more")
    processor = load_sound_processor(str(folders["ast"]), ModelSection(path=""), writes=False)
    prompter = TASK.prompter(DataSection(train=""), processor)
    with pytest.raises(DataError, match="2 of 6 sounds cannot be read") as told:
        TASK.encode(read_rows(tmp_path), prompter, ["a", "b"], 0)
    assert "(a/0.wav)" in str(told.value)
    assert len(str(told.value).splitlines()) <= 4


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"path": "a.wav", "label": "x"}, r"data.columns={audio: path}"),
        ({"audio": "nothing.wav", "label": "x"}, "no such sound"),
        ({"audio": 7, "label": "x"}, "not a sound"),
    ],
)
def test_a_row_without_a_sound_is_told_with_its_line(row, said, folders, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    processor = load_sound_processor(str(folders["ast"]), ModelSection(path=""), writes=False)
    with pytest.raises(DataError, match=said) as told:
        TASK.encode(read_rows(tmp_path / "rows.jsonl"), TASK.prompter(DataSection(train=""), processor), ["x"], 0)
    assert "rows.jsonl:1" in str(told.value)


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("ast", {"model__audio_seconds": 1}, "sounds of its own length only"),
        ("whisper", {"model__audio_seconds": 3}, "up to its own number"),
        ("whisper", {"model__image_size": 32}, "are sounds, no images"),
        ("whisper", {"data__prompt": "{audio}"}, "are sounds, no texts"),
    ],
)
def test_settings_that_sounds_cannot_have_are_refused(family, changes, said, folders, birds, tmp_path):
    with pytest.raises(RecipeError, match=said):
        planned(recipe_of(tmp_path, folders[family], birds, **changes), Reporter())


def test_where_no_package_reads_sounds_one_line_says_what_to_install(folders, birds, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(RecipeError, match="needs soundfile") as told:
        planned(recipe_of(tmp_path, folders["whisper"], birds), Heard())
    assert "afina[audio]" in str(told.value)
