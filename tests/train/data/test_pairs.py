from __future__ import annotations

import pytest

from afina.train.data.pairs import pair_of, prompt_text

from .test_encode import prompter, rows


def says(role, text):
    return {"role": role, "content": text}


USER, GOOD, BAD = says("user", "q"), says("assistant", "good"), says("assistant", "bad")
SHAPES = {
    "text": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "messages": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "prompt within": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "prompt as text and within": {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "prompt as text": {"prompt": "q", "chosen": [GOOD], "rejected": [BAD]},
    "answers as text": {"prompt": [USER], "chosen": "good", "rejected": "bad"},
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_the_same_pair(name):
    pair = pair_of(prompter(), rows(SHAPES[name]), 0)
    assert (pair.prompt, pair.chosen, pair.rejected) == ([USER], [GOOD], [BAD])
    assert prompt_text(prompter(), rows(SHAPES[name]), 0) == "<|user|>q\n<|assistant|>"


@pytest.mark.parametrize("name", SHAPES)
def test_system_message_stands_first(name):
    p = prompter(system="s")
    assert pair_of(p, rows(SHAPES[name]), 0).prompt == [says("system", "s"), USER]
    assert prompt_text(p, rows(SHAPES[name]), 0) == "<|system|>s\n<|user|>q\n<|assistant|>"


def test_text_without_a_chat_template_stays_text_and_ends():
    pair = pair_of(prompter(chat=False), rows(SHAPES["text"]), 0)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("q", "good<eos>", "bad<eos>")


def test_prompt_ends_where_the_tokens_of_both_answers_leave_it():
    p = prompter(chat=False)
    prompt, chosen, rejected = pair_of(p, rows({"prompt": "a", "chosen": "xy", "rejected": "xz"}), 0).answers(p)
    assert [p.tokenizer.decode(ids) for ids in (prompt, chosen, rejected)] == ["a", "xy<eos>", "xz<eos>"]


def test_template_makes_the_prompt():
    pair = pair_of(prompter(prompt="Q: {q}"), rows({"q": "a", "chosen": "b", "rejected": "c"}), 0)
    assert pair.prompt == [says("user", "Q: a")]


def test_sharegpt_pairs_are_pairs():
    from afina.train.data.formats import recognise

    row = {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "good"},
           "rejected": {"from": "gpt", "value": "bad"}, "system": "s"}  # fmt: skip
    shaped, shape = recognise(rows(row))
    assert shape == "preference"
    pair = pair_of(prompter(), shaped, 0)
    assert (pair.prompt, pair.chosen, pair.rejected) == ([says("system", "s"), USER], [GOOD], [BAD])
    assert not shaped.unread()
    assert prompt_text(prompter(), shaped, 0) == "<|system|>s\n<|user|>q\n<|assistant|>"


def test_instruction_is_the_prompt_of_a_pair():
    from afina.train.data.formats import recognise

    shaped, _ = recognise(rows({"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}))
    assert pair_of(prompter(), shaped, 0).prompt == [USER]


def test_answers_of_a_pair_end_as_the_template_ends_them():
    p = prompter()
    pair = pair_of(p, rows(SHAPES["text"]), 0)
    texts = [p.tokenizer.decode(ids) for ids in pair.answers(p)]
    assert texts == ["<|user|>q\n<|assistant|>", "good<eos>", "bad<eos>"]
