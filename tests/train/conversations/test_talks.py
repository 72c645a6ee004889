"""From end to end, on a model whose end of turn is not its tokenizer's end of sequence."""

from __future__ import annotations

import json
import shutil

import pytest

from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from .. import tiny
from ..child import command
from ..loop.test_run import Heard
from .families import GEMMA_2, GEMMA_3

LIMIT = 24
"""New tokens: far more than an answer has."""


def says(role, content):
    return {"role": role, "content": content}


def talk(i, answered=True):
    """Two questions about numbers, the second with the other answer than the first."""
    words = ["odd" if n % 2 else "even" for n in (i, i + 1)]
    turns = [says("user", f"n{i % 2}"), says("assistant", words[0]), says("user", f"n{(i + 1) % 2}")]
    return [says("system", "Say it."), *turns, *([says("assistant", words[1])] if answered else [])]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_model(folder):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=264, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=2, eos_token_id=1, pad_token_id=0,
        tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = tiny.tokenizer(chat=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    tokenizer.chat_template = GEMMA_3
    tokenizer.save_pretrained(folder)
    return folder


def recipe(folder, model, **changes):
    own = {
        "data": {"train": str(write_rows(folder / "rows.jsonl", [{"messages": talk(i)} for i in range(24)])),
                 "eval": str(write_rows(folder / "held-out.jsonl", [{"messages": talk(i)} for i in range(2)])),
                 "max_length": 256},
        "method": {"type": "lora", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        "training": {"learning_rate": 0.02, "batch_size": 8, "max_steps": 60, "save_steps": 60},
    }  # fmt: skip
    return tiny.write_recipe(folder, model, **own, **changes)


def trained_run(file):
    from afina.train.loop.run import run

    heard = Heard()
    return run(load_recipe(str(file)), heard).folder, heard.notes


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def run_of_talks(model, tmp_path_factory, child):
    folder = tmp_path_factory.mktemp("talks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(folder / "cache"))
        return child(trained_run, recipe(folder, model))


def predictions(folder, rows):
    from afina.train.data.rows import read_rows
    from afina.train.use.predictions import predict
    from afina.train.use.trained import load_trained

    done = predict(load_trained(folder, Reporter()), read_rows(rows), Reporter(), batch_size=2, max_new_tokens=LIMIT)
    return [row["prediction"] for row in done.rows]


def test_predict_answers_the_last_question_and_stops_at_the_end_of_the_turn(run_of_talks, tmp_path, child):
    folder, _ = run_of_talks
    asked = write_rows(tmp_path / "asked.jsonl", [{"messages": talk(i, answered=False)} for i in range(2)])
    answered = write_rows(tmp_path / "answered.jsonl", [{"messages": talk(i)} for i in range(2)])
    assert child(predictions, folder, asked) == ["odd", "even"] == child(predictions, folder, answered)


def test_system_message_that_all_rows_have_is_kept_for_rows_without(run_of_talks, tmp_path, child):
    folder, notes = run_of_talks
    assert load_recipe(str(folder)).data.system == "Say it."
    assert any(note.startswith("data.system: the system message that all rows have") for note in notes)
    without = write_rows(tmp_path / "without.jsonl", [{"messages": talk(i, answered=False)[1:]} for i in range(2)])
    assert child(predictions, folder, without) == ["odd", "even"]


def test_how_turns_are_learnt_is_a_note_of_the_run(run_of_talks):
    notes = [note for note in run_of_talks[1] if "data.turns" in note]
    assert notes == ["conversations with all answers in one sequence (data.turns): 26"]


def merged(folder, out):
    from afina.export.merged import merge
    from afina.train.use.trained import load_trained

    merge(load_trained(folder, Reporter()), out)


def plain_answers(folder):
    """What transformers alone makes of the merged model's files."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(talk(0, False), add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=LIMIT, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :])


def test_merged_model_stops_at_the_end_of_its_turn_without_afina(run_of_talks, tmp_path, child):
    child(merged, run_of_talks[0], tmp_path / "merged")
    assert child(plain_answers, tmp_path / "merged") == "odd<end_of_turn>"


MISTAKES = {
    "no system": (GEMMA_2, {"messages": [says("system", "s"), says("user", "a"), says("assistant", "b")]},
                  "the chat template refuses the messages\ngot: System role not supported"),
    "half a character": (GEMMA_3, {"messages": [says("user", "\ud800"), says("assistant", "b")]}, "half a character"),
    "bad answer": (GEMMA_3, {"prompt": "a", "completion": "b", "label": False}, "the answer is called bad"),
    "picture": (GEMMA_3, {"messages": [{"role": "user", "content": [{"type": "image"}]}, says("assistant", "b")]},
                "a message has an image\nexpected: text alone, for this task"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_rows_end_with_code_2_and_the_line(name, model, tmp_path, child):
    template, row, told = MISTAKES[name]
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template, encoding="utf-8")
    file = recipe(tmp_path, tmp_path / "model")
    good = {"messages": talk(0)[1:]} if "messages" in row else {"prompt": "a", "completion": "b", "label": True}
    write_rows(tmp_path / "rows.jsonl", [good, row])
    write_rows(tmp_path / "held-out.jsonl", [good])
    code, out, err = child(command, "train", file)
    assert code == 2, out + err
    assert f"rows.jsonl:2: {told}" in err
    assert "Traceback" not in err


def test_strict_stops_at_what_nothing_reads(model, tmp_path, child):
    file = recipe(tmp_path, model)
    rows = [{"messages": talk(i), "id": i} for i in range(4)]
    write_rows(tmp_path / "rows.jsonl", rows)
    code, _, err = child(command, "train", file, "data.strict=true")
    assert code == 2
    assert "nothing reads" in err
    assert "column 'id' (4)" in err
    code, out, err = child(command, "train", file, "training.max_steps=1")
    assert code == 0
    assert "nothing reads: column 'id' (4)" in out + err
