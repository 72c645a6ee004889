"""Speech and what is said: by models that write (Whisper), and by models that spell (wav2vec 2.0 with CTC)."""

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
from .. import of_files
from ..of_files import LONG

TASK = named("speech_recognition")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"whisper": tiny_sounds.write_whisper(folder / "whisper"),
            "english": tiny_sounds.write_whisper(folder / "english", languages=False),
            "wav2vec2": tiny_sounds.write_wav2vec2(folder / "wav2vec2")}  # fmt: skip


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    """Sounds of two words in a table beside them."""
    folder = tmp_path_factory.mktemp("talks")
    lines = ["audio,text"]
    for i in range(20):
        (folder / f"{i}.wav").write_bytes(tiny_sounds.tone(i))
        lines.append(f"{i}.wav,{'odd' if i % 2 else 'even'}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    return folder / "rows.csv"


def recipe_of(tmp_path, folder, talks, family="whisper", **changes):
    told = {"model__language": "welsh"} if family == "whisper" else {}
    method = {"type": "lora", "r": 8, "target_modules": "all-linear"}
    given = {"method": method, "evaluation": {"max_new_tokens": 6}, **told}
    return of_files.recipe_of(tmp_path, TASK.name, folder, talks, 5, **{**given, **changes})


def processor_of(folder, **section):
    return load_sound_processor(str(folder), ModelSection(path="", **section), writes=True)


def test_a_model_is_told_language_and_task_and_learns_the_text_alone(folders, talks):
    processor = processor_of(folders["whisper"], language="Welsh", speech="translate")
    items = TASK.encode(read_rows(talks), TASK.prompter(DataSection(train=""), processor), None, 0).items
    batch, tokenizer = TASK.collator(processor)(items[:2]), processor.tokenizer
    read = tokenizer.batch_decode(batch["decoder_input_ids"])
    before = "<|startoftranscript|><|cy|><|translate|><|notimestamps|>"
    assert read == [f"{before}even", f"{before}odd<|endoftext|>"]  # the last one pads
    learnt = [[i for i in row.tolist() if i != -100] for row in batch["labels"]]
    assert tokenizer.batch_decode(learnt) == ["even<|endoftext|>", "odd<|endoftext|>"]
    # What comes next is learnt where it is read.
    assert batch["labels"][0].tolist() == [-100] * 3 + [
        *batch["decoder_input_ids"][0].tolist()[4:],
        tokenizer.eos_token_id,
    ]


def test_the_loss_is_that_of_transformers_own_labels(folders, talks):
    """Its own way is to give labels with what the model is told; the loss is taken on the text here."""
    section = ModelSection(path="", language="welsh", dtype="float32")
    processor = processor_of(folders["whisper"], language="welsh")
    model = TASK.load(section, str(folders["whisper"]), None, processor)
    items = TASK.encode(read_rows(talks).take(0, 2), TASK.prompter(DataSection(train=""), processor), None, 0).items
    batch = TASK.collator(processor)(items)
    logits = model(input_features=batch["input_features"], labels=torch.tensor(
        [processor.tokenizer("even").input_ids[1:], [*processor.tokenizer("odd").input_ids[1:], -100]]
    )).logits  # fmt: skip
    own = model(**batch)
    torch.testing.assert_close(own.logits[0], logits[0])
    picked = logits[0][3:].log_softmax(-1).gather(1, batch["labels"][0][3:, None])
    other = logits[1][3:-1].log_softmax(-1).gather(1, batch["labels"][1][3:-1, None])
    torch.testing.assert_close(own.loss, -torch.cat([picked, other]).mean())
    assert own.loss > 1


@pytest.mark.whole("learning among the tasks, the rest by models that spell")
def test_a_run_learns_is_loaded_writes_and_merges(folders, talks, tmp_path, child):
    recipe = recipe_of(tmp_path, folders["whisper"], talks, training__max_steps=60, training__save_steps=60)
    child(learns_and_is_used, recipe, talks)


def learns_and_is_used(recipe, talks):
    from transformers import pipeline

    from afina.export.merged import merge

    result = run(recipe, Reporter())
    assert result.after.word_errors < 0.3 < result.before.word_errors
    assert result.after.accuracy > 0.7
    assert result.after.loss < 0.5 * result.before.loss
    trained = load_trained(result.folder, Reporter())
    done = predict(trained, read_rows(talks), Reporter(), batch_size=6, max_new_tokens=6)
    assert done.scores.word_errors < 0.2
    right = next(row for row in done.rows if row["prediction"] == row["text"] == "odd")
    assert TASK.told(trained, str(talks.parent / right["audio"]), 6) == "odd"
    assert TASK.told(trained, str(talks.parent / right["audio"]), 10_000) == "odd"  # more than there is room for
    assert merge(trained, result.folder / "merged").difference < 1e-4
    # Others load the merged model, and it writes the same, without being told the language again.
    theirs = pipeline("automatic-speech-recognition", str(result.folder / "merged"))
    from afina.train.data.sounds.sound_files import heard

    sound = heard(str(talks.parent / right["audio"]), "", 16000).values
    assert theirs({"raw": sound, "sampling_rate": 16000})["text"].strip() == "odd"


def test_a_model_that_spells_learns_is_loaded_and_merges(folders, talks, tmp_path, child):
    method = {"type": "lora", "r": 8, "target_modules": "all-linear", "modules_to_save": ["lm_head"]}
    changes = {"training__max_steps": 12, "method": method}
    child(spells, recipe_of(tmp_path, folders["wav2vec2"], talks, "wav2vec2", **changes), talks)


def spells(recipe, talks):
    from transformers import pipeline

    from afina.export.merged import merge
    from afina.train.data.sounds.sound_files import heard

    result = run(recipe, Reporter())
    assert result.after.loss < 0.5 * result.before.loss
    trained = load_trained(result.folder, Reporter())
    done = predict(trained, read_rows(talks), Reporter(), batch_size=1)
    assert 0 < done.scores.word_errors <= 2
    assert merge(trained, result.folder / "merged").difference < 1e-4
    theirs = pipeline("automatic-speech-recognition", str(result.folder / "merged"))
    for row in done.rows[:4]:
        sound = heard(str(talks.parent / row["audio"]), "", 16000).values
        assert theirs({"raw": sound, "sampling_rate": 16000})["text"].strip() == row["prediction"]


@pytest.mark.whole("Whisper resumes among the tasks")
def test_a_model_that_spells_resumes_to_the_bit(folders, talks, tmp_path, child):
    changes = {"training__max_steps": 6, "training__save_steps": 3}
    recipe = recipe_of(tmp_path, folders["wav2vec2"], talks, "wav2vec2", **changes)
    of_files.resumes_to_the_bit(child, recipe)


@pytest.mark.whole("files are the same for all tasks")
def test_the_reference_reads_the_adapter(folders, talks, tmp_path, child):
    import peft
    from transformers import AutoModelForSpeechSeq2Seq

    recipe = recipe_of(tmp_path, folders["whisper"], talks, training__max_steps=3)
    folder, batch, own = child(logits_of_run, recipe)
    base = AutoModelForSpeechSeq2Seq.from_pretrained(folders["whisper"])
    theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    torch.testing.assert_close(theirs(**batch).logits, own)
    with theirs.disable_adapter():
        assert (theirs(**batch).logits - own).abs().max() > 1e-3


def logits_of_run(recipe):
    trained = load_trained(run(recipe, Reporter()).folder, Reporter())
    batch = TASK.probe(trained.prompter, "even", "cpu")
    return trained.folder, batch, trained.model(**batch).logits.detach()


@pytest.mark.whole("storage is the same for all tasks")
def test_a_base_in_int8_is_taught_to_write(folders, talks, tmp_path, child):
    recipe = recipe_of(tmp_path, folders["whisper"], talks, model__quantize="int8", model__dtype="float32")
    result = child(run, recipe, Reporter())
    assert result.after.loss < 0.7 * result.before.loss


def test_sounds_and_texts_that_are_too_long_are_left_out_and_counted(folders, talks, tmp_path):
    rows = read_rows(talks)
    (tmp_path / "long.wav").write_bytes(tiny_sounds.tone(1, seconds=3))
    rows.values[0] = {"audio": str(tmp_path / "long.wav"), "text": "odd"}
    rows.values[1]["text"] = "odd " * 20
    prompter = TASK.prompter(DataSection(train=""), processor_of(folders["whisper"], language="en"))
    encoded = TASK.encode(rows, prompter, None, 0)
    assert encoded.source == list(range(2, 20))
    assert prompter.ledger.told["sounds longer than 2 s, which are left out"] == 1
    assert prompter.ledger.told["texts of more than 40 tokens, which are left out with their sounds"] == 1


def test_a_row_without_words_is_told(folders, talks):
    rows = read_rows(talks)
    rows.values[3]["text"] = "..."
    with pytest.raises(DataError, match="nothing is said") as told:
        TASK.encode(rows, TASK.prompter(DataSection(train=""), processor_of(folders["english"])), None, 0)
    assert "rows.csv:5" in str(told.value)


def test_more_letters_than_moments_are_refused(folders, talks, tmp_path, child):
    rows = [{"audio": str(talks.parent / "1.wav"), "text": "a word that takes longer"}] * 3
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = recipe_of(tmp_path, folders["wav2vec2"], tmp_path / "rows.jsonl", "wav2vec2", data__eval_split=0.0)
    with pytest.raises(DataError, match="too long for its sound"):
        child(run, recipe, Reporter())


@pytest.mark.parametrize(
    ("family", "section", "said"),
    [
        ("whisper", {"language": "klingon"}, "knows no such language"),
        ("whisper", {"language": "cantonese"}, "knows no such language"),  # of later ones
        ("english", {"language": "welsh"}, "no tokens for languages"),
        ("wav2vec2", {"language": "welsh"}, "no tokens for languages"),
    ],
)
def test_languages_that_a_model_does_not_know_are_told(family, section, said, folders):
    with pytest.raises(RecipeError, match=said):
        processor_of(folders[family], **section)


def test_a_model_of_many_languages_is_told_which(folders, talks, tmp_path, child):
    with pytest.raises(RecipeError, match="hears many languages"):
        child(planned, recipe_of(tmp_path, folders["whisper"], talks, "nobody's"), Reporter())


def test_a_dry_run_says_what_speech_will_take_or_that_it_cannot(folders, talks, tmp_path, child):
    lines = child(planned, recipe_of(tmp_path, folders["whisper"], talks), Reporter())
    assert any("a step of 5 sounds as 8 x 200 numbers" in line for line in lines)
    lines = child(planned, recipe_of(tmp_path, folders["wav2vec2"], talks, "wav2vec2"), Reporter())
    assert any("sounds as 6400 numbers" in line or "cannot be told" in line for line in lines)


NOT_OF_SPEECH = {
    "ADAPTION_PROMPT": "not an attention that is known", "SHADOW": "not a block of an encoder",
    "XLORA": "needs experts",
    **dict.fromkeys(("CARTRIDGE", "CPT", "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"),
                    "takes no tokens"),
}  # fmt: skip
"""Methods that Whisper cannot be trained with, and what they say."""


@pytest.mark.parametrize("name", [
    n if n in ("LORA", "PREFIX_TUNING") else pytest.param(n, marks=LONG)
    for n in methods()
])  # fmt: skip
def test_every_method_trains_on_a_whisper_or_says_why_not(name, folders, talks, tmp_path, child):
    changes = of_files.few_steps(name, tmp_path, talks, "audio")
    recipe = recipe_of(tmp_path, folders["whisper"], talks, **changes)
    of_files.trains_or_says_why(child, recipe, NOT_OF_SPEECH.get(name))
