"""What of a row reaches the model: system messages, earlier turns, and what nothing reads."""

from __future__ import annotations

import pytest

from afina.errors import DataError
from afina.train.data.encode import encode_answers
from afina.train.data.formats import recognise

from .test_encode import prompter, rows, trained_text


def says(role, content):
    return {"role": role, "content": content}


ASKED, ANSWER = says("user", "q"), says("assistant", "a")


def text_of(row, **data):
    """The one sequence of a row as text, and the rows."""
    p = prompter(**data)
    shaped, _ = recognise(rows(row))
    (item,) = encode_answers(shaped, p, 259).items
    return p.tokenizer.decode(item["input_ids"]), shaped


SYSTEMS = {
    "recipe, messages": ({"messages": [ASKED, ANSWER]}, "r"),
    "recipe, text": ({"prompt": "q", "completion": "a"}, "r"),
    "row, messages": ({"messages": [ASKED, ANSWER], "system": "s"}, "s"),
    "row, text": ({"prompt": "q", "completion": "a", "system": "s"}, "s"),
    "row, alpaca": ({"instruction": "q", "output": "a", "system": "s"}, "s"),
    "row, ShareGPT": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
                       "system": "s"}, "s"),
    "own": ({"messages": [says("system", "s"), ASKED, ANSWER]}, "s"),
}  # fmt: skip


@pytest.mark.parametrize("name", SYSTEMS)
def test_system_message_of_the_row_comes_before_the_recipes(name):
    row, system = SYSTEMS[name]
    text, shaped = text_of(row, system="r")
    assert text == f"<|system|>{system}\n<|user|>q\n<|assistant|>a<eos>"
    assert not shaped.unread()
    p = prompter(system="r")
    kind = p.question_format(shaped)
    assert text == p.prompt(shaped, 0, kind) + "a<eos>"
    if system == "r":
        assert p.conversation([ASKED]) == p.prompt(shaped, 0, kind)


def test_history_of_alpaca_rows_stands_before_the_question():
    row = {"instruction": "q", "output": "a", "history": [["b", "c"]]}
    text, shaped = text_of(row)
    assert text == "<|user|>b\n<|assistant|>c<eos>\n<|user|>q\n<|assistant|>a<eos>"
    assert not shaped.unread()
    with pytest.raises(DataError, match="no pair of texts"):
        text_of({**row, "history": [["b"]]})


def test_only_the_completion_of_a_conversational_row_is_learnt():
    p = prompter()
    row = rows({"prompt": [ASKED, ANSWER, says("user", "p")], "completion": [says("assistant", "b")]})
    (item,) = encode_answers(row, p, 259).items
    assert trained_text(item, p) == "b<eos>"


def test_prompt_of_a_row_that_ends_in_a_question_is_that_question():
    row = rows({"messages": [ASKED, ANSWER, says("user", "p")]})
    assert prompter().prompt(row, 0, "chat").endswith("a<eos>\n<|user|>p\n<|assistant|>")


def test_column_that_nothing_reads_is_counted():
    p = prompter()
    given = rows({"prompt": "q", "completion": "a", "id": 1}, {"prompt": "q", "completion": "a"})
    encode_answers(given, p, 259)
    assert given.unread() == {"id": 1}
    part = given.take(0, 1)
    part.value(0, "id")
    assert given.unread() == {}


def test_system_tools_and_history_are_unread_without_a_chat_template():
    p = prompter(chat=False)
    given = rows({"prompt": "q ", "completion": "a", "system": "s", "tools": "[]", "history": []})
    encode_answers(given, p, 259)
    assert given.unread() == {"system": 1, "tools": 1, "history": 1}


def test_prompt_and_answer_without_a_blank_between_are_told():
    glued, spaced = prompter(chat=False), prompter(chat=False)
    encode_answers(rows({"prompt": "Name a river", "completion": "Tejo"}), glued, 259)
    encode_answers(rows({"prompt": "Name a river", "completion": " Tejo"}), spaced, 259)
    assert "without a blank" in glued.ledger.lines[0]
    assert not spaced.ledger.lines


def test_start_token_in_the_prompt_is_not_doubled():
    from tokenizers.processors import TemplateProcessing

    p = prompter(chat=False)
    p.tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    for prompt in ("q ", "<bos>q "):
        (item,) = encode_answers(rows({"prompt": prompt, "completion": "a"}), p, 259).items
        assert p.tokenizer.decode(item["input_ids"]) == "<bos>q a<eos>"
