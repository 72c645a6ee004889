from __future__ import annotations

from pathlib import Path

import pytest

from afina.errors import DataError, RecipeError
from afina.train.data.encode import IGNORED, encode_answers, encode_classes, rendered_answers, token_ids
from afina.train.data.prompts import Prompter
from afina.train.data.rows import Rows
from afina.train.recipe.sections import DataSection

from .. import tiny


def rows(*values):
    return Rows(Path("d.jsonl"), list(values), list(range(1, len(values) + 1)))


def prompter(chat=True, pad="<pad>", **data):
    return Prompter(DataSection(train="d.jsonl", **data), tiny.tokenizer(chat, pad))


def trained_text(item, p):
    return p.tokenizer.decode([t for t in item["labels"] if t != IGNORED])


def test_loss_is_on_the_answer_and_its_end_only():
    p = prompter()
    (item,) = encode_answers(rows({"prompt": "why?", "completion": "so"}), p, 259).items
    assert trained_text(item, p) == "so<eos>"
    assert p.tokenizer.decode(item["input_ids"]) == "<|user|>why?\n<|assistant|>so<eos>"


def test_end_token_is_trained_even_where_it_is_the_padding_token():
    p = prompter(pad="<eos>")
    (item,) = encode_answers(rows({"prompt": "a", "completion": "b"}), p, 259).items
    assert item["labels"][-1] == p.tokenizer.eos_token_id == p.tokenizer.pad_token_id


def test_padding_of_a_batch_is_masked_by_length():
    from transformers import DataCollatorForSeq2Seq

    p = prompter(pad="<eos>")
    encoded = encode_answers(rows({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "bbbb"}), p, 259)
    batch = DataCollatorForSeq2Seq(p.tokenizer, padding=True)(encoded.items)
    short = [t for t in batch["labels"][0].tolist() if t != IGNORED]
    assert p.tokenizer.decode(short) == "b<eos>"
    assert batch["attention_mask"][0].sum() == len(encoded.items[0]["input_ids"])


def test_every_assistant_turn_is_trained_and_ends():
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    p = prompter()
    (item,) = encode_answers(rows(row), p, 259).items
    assert trained_text(item, p) == "b<eos>d<eos>"
    whole = p.tokenizer.apply_chat_template(row["messages"], tokenize=False).rstrip("\n")
    assert p.tokenizer.decode(item["input_ids"]) == whole


def test_prompt_tokens_at_inference_are_those_of_training():
    p = prompter(prompt="Q: {text}", completion="{label}", system="be brief")
    r = rows({"text": "x", "label": "y"})
    (item,) = encode_answers(r, p, 259).items
    prompt = token_ids(p, p.prompt(r, 0), first=True)
    assert item["input_ids"][: len(prompt)] == prompt
    assert item["labels"][: len(prompt)] == [IGNORED] * len(prompt)
    assert item["labels"][len(prompt)] != IGNORED
    assert token_ids(p, p.wrap(p.asked("x")), first=True) == prompt


def test_without_a_chat_template_the_prompt_stands_alone():
    p = prompter(chat=False)
    (item,) = encode_answers(rows({"prompt": "a", "completion": "b"}), p, 259).items
    assert p.tokenizer.decode(item["input_ids"]) == "ab<eos>"


def test_cut_and_masked_rows_are_counted():
    values = [{"prompt": "a", "completion": "b"}] * 300 + [{"prompt": "a" * 99, "completion": "b"}] * 2
    values.append({"prompt": "a", "completion": "b" * 99})
    encoded = encode_answers(rows(*values), prompter(max_length=40), 259)
    assert (len(encoded), encoded.truncated, encoded.masked) == (301, 3, 2)


def test_too_many_masked_rows_are_refused_unless_allowed():
    values = [{"prompt": "a", "completion": "b"}, {"prompt": "a" * 99, "completion": "b"}]
    with pytest.raises(DataError, match="1 of 2 rows have no answer left"):
        encode_answers(rows(*values), prompter(max_length=40), 259)
    assert len(encode_answers(rows(*values), prompter(max_length=40, allow_masked=True), 259)) == 1
    with pytest.raises(DataError, match="1 of 1 rows"):
        encode_answers(rows(values[1]), prompter(max_length=40, allow_masked=True), 259)


def test_token_outside_the_vocabulary_is_told_with_its_row():
    with pytest.raises(DataError, match=r"d\.jsonl:1: token \d+ is outside"):
        encode_answers(rows({"prompt": "a", "completion": "b"}), prompter(), 50)


@pytest.mark.parametrize(
    "messages",
    [
        "hi", [], [{"role": "user"}], [{"role": "user", "content": 3}], [{"role": "asistant", "content": "x"}],
        [{"role": "user", "content": "x"}], ["hi"], None,
    ],
)  # fmt: skip
def test_malformed_messages_are_told_with_their_line(messages):
    with pytest.raises(DataError, match=r"^d\.jsonl:1: "):
        encode_answers(rows({"messages": messages}), prompter(), 259)


def test_messages_without_a_chat_template_are_refused():
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(DataError, match="no chat template"):
        encode_answers(rows(row), prompter(chat=False), 259)


def test_columns_that_fit_no_format_are_refused():
    with pytest.raises(DataError, match="cannot tell prompt from answer"):
        encode_answers(rows({"question": "a", "answer": "b"}), prompter(), 259)


@pytest.mark.parametrize("template", ["{text", "{0}", "{text.x}", "{}", "{text[0]}"])
def test_templates_name_plain_columns(template):
    with pytest.raises(RecipeError, match=r"data\.prompt"):
        encode_answers(rows({"text": "a", "completion": "b"}), prompter(prompt=template), 259)


def test_rendered_example_shows_what_is_trained():
    p = prompter()
    (item,) = encode_answers(rows({"prompt": "why?", "completion": "so"}), p, 259).items
    spans = rendered_answers(item, p.tokenizer)
    assert [(s.text, s.trained) for s in spans] == [("<|user|>why?\n<|assistant|>", False), ("so<eos>", True)]


def test_classes_are_positions_and_long_texts_are_counted():
    data = DataSection(train="d.jsonl", max_length=8)
    encoded = encode_classes(
        rows({"text": "a" * 20, "label": "y"}, {"text": "a", "label": "x"}), tiny.tokenizer(), data, ["x", "y"]
    )
    assert [item["labels"] for item in encoded.items] == [1, 0]
    assert encoded.truncated == 1
    assert len(encoded.items[0]["input_ids"]) == 8
