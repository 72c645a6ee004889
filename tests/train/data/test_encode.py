from __future__ import annotations

from pathlib import Path

import pytest

from afina.errors import DataError, RecipeError
from afina.train.data.encode import (
    IGNORED,
    Data,
    Encoded,
    check_vocabulary,
    cut_prompt,
    encode_answers,
    encode_classes,
    encoder_ids,
    rendered_answers,
    token_ids,
)  # fmt: skip
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


# -- what is left where rows are long ----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [3, 4, 5, 6])
def test_row_keeps_as_many_tokens_as_fit_and_is_counted_if_any_is_lost(length):
    p = prompter(chat=False, max_length=length)
    encoded = encode_answers(rows({"prompt": "ab", "completion": "cd"}), p, 259)  # and the token that ends it
    (item,) = encoded.items
    whole = token_ids(p, "abcd<eos>", first=True)
    assert item["input_ids"] == whole[:length]
    assert item["labels"] == ([IGNORED] * 2 + whole[2:])[:length]
    assert item["attention_mask"] == [1] * len(item["input_ids"])
    assert encoded.truncated == (length < 5)
    assert encoded.masked == 0


def test_class_text_keeps_as_many_tokens_as_fit():
    for length, cut in ((3, 1), (4, 0), (5, 0)):
        data = DataSection(train="d.jsonl", max_length=length)
        encoded = encode_classes(rows({"text": "abcd"}), tiny.tokenizer(), data, ["x", "y"], labelled=False)
        (item,) = encoded.items
        assert len(item["input_ids"]) == len(item["attention_mask"]) == min(length, 4)
        assert encoded.truncated == cut
        assert "labels" not in item
        assert item["attention_mask"][0] == 1


def test_answer_of_which_only_the_first_token_of_all_is_left_is_no_signal():
    p = prompter(chat=False, allow_masked=True)
    encoded = encode_answers(
        rows({"prompt": "", "completion": "<eos>"}, {"prompt": "a", "completion": "<eos>"}), p, 259
    )
    assert [item["labels"] for item in encoded.items] == [[IGNORED, 1]]
    assert (encoded.masked, encoded.source) == (1, [1])


def test_prompt_of_an_encoder_is_cut_before_its_last_token():
    assert cut_prompt([5, 6, 7, 8], 4) == [5, 6, 7, 8]
    assert cut_prompt([5, 6, 7, 8], 3) == [5, 6, 8]


def test_rows_lost_to_cutting_are_allowed_up_to_one_in_a_hundred():
    data = DataSection(train="d.jsonl")
    given = rows(*[{"prompt": "a"}] * 200)
    for masked, fine in ((0, True), (2, True), (3, False)):
        encoded = Encoded([{"input_ids": [1]}], [0], masked=masked)
        if fine:
            encoded.check_masked(given, data)
            continue
        with pytest.raises(DataError, match="3 of 200") as caught:
            encoded.check_masked(given, data)
        assert "allow_masked" in str(caught.value)
    with pytest.raises(DataError, match="no answer to learn"):
        Encoded().check_masked(given, data)
    with pytest.raises(DataError) as caught:
        Encoded(masked=200).check_masked(given, DataSection(train="d.jsonl", allow_masked=True))
    assert "allow_masked" not in str(caught.value)


def test_items_know_their_length_and_row():
    encoded = Encoded([{"input_ids": [1]}, {"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4, 5, 6]}],
                      [3, 0], truncated=1, masked=2)  # fmt: skip
    assert [encoded.length(i) for i in range(len(encoded))] == [1, 6]
    assert encoded.where(0) == "row 4"
    assert encoded[1] is encoded.items[1]
    longest_first = encoded.by_length()
    assert (longest_first.items, longest_first.source) == (encoded.items[::-1], [0, 3])
    assert (longest_first.truncated, longest_first.masked) == (1, 2)
    encoded.rows = rows({"a": 1}, {"a": 2}, {"a": 3}, {"a": 4})
    assert encoded.where(0) == "d.jsonl:4"


def test_tasks_are_counted_over_both_parts():
    items = [Encoded([{"task_ids": n}]) for n in (1, 4)]
    assert Data(None, items[0], items[1], None).tasks == 5
    assert Data(None, items[0], None, None).tasks == 2
    assert Data(None, Encoded([{}]), None, None).tasks == 0
    assert Data(None, Encoded(), None, None).tasks == 0


@pytest.mark.parametrize(("ids", "fits"), [([0, 49], True), ([50, 3], False), ([], True)])
def test_last_token_of_the_vocabulary_is_the_one_before_its_size(ids, fits):
    if fits:
        return check_vocabulary(ids, "d.jsonl:1", 50)
    with pytest.raises(DataError, match="less than 50"):
        check_vocabulary(ids, "d.jsonl:1", 50)


# -- answers of a conversation ----------------------------------------------------------------------------------------

SAID = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e"), ("assistant", "f")]
TALK = {"messages": [{"role": role, "content": text} for role, text in SAID]}
FORGETS = tiny.CHAT_TEMPLATE.replace(
    "{{ m['content'] }}", "{{ m['content'] if loop.last or m['role'] == 'user' else '-' }}"
)


@pytest.mark.parametrize(("turns", "expected"), [
    ("auto", ["b<eos>d<eos>f<eos>"]), ("all", ["b<eos>d<eos>f<eos>"]), ("each", ["b<eos>", "d<eos>", "f<eos>"]),
    ("last", ["f<eos>"]),
])  # fmt: skip
def test_recipe_says_which_answers_share_a_sequence(turns, expected):
    p = prompter(turns=turns)
    items = encode_answers(rows(TALK), p, 259).items
    assert [trained_text(item, p) for item in items] == expected
    assert all(item["labels"][0] == IGNORED for item in items)
    assert all(len(item["labels"]) == len(item["input_ids"]) for item in items)
    told = p.ledger.told
    assert any("all answers in one sequence" in line for line in told) == (turns in ("auto", "all"))


def test_template_that_writes_earlier_turns_otherwise_gets_a_sequence_for_each():
    p = prompter()
    p.tokenizer.chat_template = FORGETS
    items = encode_answers(rows(TALK), p, 259).items
    assert [trained_text(item, p) for item in items] == ["b<eos>", "d<eos>", "f<eos>"]
    assert any("a sequence for each answer" in line for line in p.ledger.told)
    p = prompter(turns="all")
    p.tokenizer.chat_template = FORGETS
    with pytest.raises(DataError, match=r"data\.turns=each"):
        encode_answers(rows(TALK), p, 259)


def test_row_without_an_answer_is_told_and_left_out():
    p = prompter(chat=False)
    encoded = encode_answers(rows({"prompt": "a ", "completion": " "}, {"prompt": "a ", "completion": "b"}), p, 259)
    assert encoded.source == [1]
    assert any("left out" in line for line in p.ledger.told)
    assert any("empty answers" in line for line in p.ledger.told)


def test_a_row_by_itself_without_an_answer_is_told_with_its_line():
    with pytest.raises(DataError, match=r"jsonl:1: no answer to learn$"):
        encode_answers(rows({"prompt": "a ", "completion": " "}), prompter(chat=False), 259)


# -- tokens -----------------------------------------------------------------------------------------------------------


def begins(p):
    """Let a tokenizer put its start token before a text, and its end behind it."""
    from tokenizers.processors import TemplateProcessing

    p.tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    return p


def test_start_token_stands_before_the_first_piece_alone():
    p = begins(prompter(chat=False))
    plain = p.tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert token_ids(p, "ab", first=True) == [2, *plain]
    assert token_ids(p, "ab", first=False) == plain
    assert token_ids(p, "", first=True) == [2]
    assert token_ids(prompter(chat=False), "ab", first=True) == plain  # this one has none before a text
    chat = begins(prompter())
    assert token_ids(chat, "ab", first=True) == plain  # its template writes what belongs there
    assert token_ids(chat, "", first=True) == [2]
    assert encoder_ids(p, "ab") == [2, *plain, 1]
    assert encoder_ids(chat, "ab") == plain


def test_text_that_is_none_is_refused():
    with pytest.raises(DataError, match="d83d"):
        token_ids(prompter(), "a\ud83d", first=True)


class Merging:
    """Writes "bc" as one token, so that it straddles the edge of a prompt that ends in "b"."""

    chat_template = eos_token = bos_token_id = None

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [ord(c) for c in text.replace("bc", "B")]}


def test_token_that_straddles_the_edge_of_the_prompt_is_none_that_the_model_could_write():
    p = Prompter(DataSection(train="d.jsonl"), Merging())
    (item,) = encode_answers(rows({"prompt": "ab", "completion": "cd"}), p, 259).items
    assert item["input_ids"] == [ord(c) for c in "abcd"]
    assert item["labels"] == [IGNORED, IGNORED, ord("c"), ord("d")]


def test_rendered_example_is_cut_at_every_change():
    p = prompter(chat=False)
    ids = token_ids(p, "abcd", first=True)
    spans = rendered_answers({"input_ids": ids, "labels": [ids[0], IGNORED, IGNORED, ids[3]]}, p.tokenizer)
    assert [(s.text, s.trained) for s in spans] == [("a", True), ("bc", False), ("d", True)]
