from __future__ import annotations

import pytest

from afina.errors import DataError
from afina.train.data.pairs import answered, pair_of, prompt_text
from afina.train.data.prompts import Prompter
from afina.train.recipe.sections import DataSection

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


# -- tokens and faults ------------------------------------------------------------------------------------------------


def written(p, ids):
    return p.tokenizer.decode(ids)


@pytest.mark.parametrize("name", SHAPES)
def test_pair_is_read_with_its_prompt_up_to_the_end_of_the_answer(name):
    p = prompter()
    pair = pair_of(p, rows(SHAPES[name]), 0)
    assert pair.text(p) == "<|user|>q\n<|assistant|>"
    assert pair.text(p, pair.chosen) == "<|user|>q\n<|assistant|>good<eos>"
    assert written(p, pair.ids(p, pair.rejected)) == "<|user|>q\n<|assistant|>bad<eos>"
    assert written(p, pair.scored_ids(p, pair.chosen)) == "<|user|>q\n<|assistant|>good<eos>\n"


def test_pair_of_text_is_read_as_it_stands():
    p = prompter(chat=False)
    pair = pair_of(p, rows(SHAPES["text"]), 0)
    assert (pair.text(p), pair.text(p, pair.chosen)) == ("q", "qgood<eos>")
    assert pair.scored_ids(p, pair.chosen) == pair.ids(p, pair.chosen)
    bare = pair_of(p, rows({"chosen": "good", "rejected": "bad"}), 0)
    assert (bare.prompt, bare.chosen) == ("", "good<eos>")
    assert pair_of(prompter(), rows({"chosen": "good", "rejected": "bad"}), 0).prompt == ""


def test_prompt_of_a_pair_ends_where_either_answer_leaves_it():
    class Merging:
        chat_template = eos_token = bos_token_id = None

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [ord(c) for c in text.replace("bc", "B")]}

    p = Prompter(DataSection(train="d.jsonl"), Merging())
    for chosen, rejected in (("cd", "xd"), ("xd", "cd")):
        prompt, good, bad = pair_of(p, rows({"prompt": "ab", "chosen": chosen, "rejected": rejected}), 0).answers(p)
        assert prompt == [ord("a")]
        assert {"".join(map(chr, ids)) for ids in (good, bad)} == {"Bd", "bxd"}


def test_answer_of_a_pair_is_learnt_whatever_the_row_says_of_learning():
    p = prompter()
    row = {"prompt": [USER], "chosen": [{**GOOD, "train": False}], "rejected": [BAD]}
    pair = pair_of(p, rows(row), 0)
    assert pair.text(p, pair.chosen).endswith("good<eos>")


@pytest.mark.parametrize("answer", [[says("assistant", "")], [says("user", "x")]])
def test_answer_of_a_pair_that_says_nothing_is_refused(answer):
    p = prompter()
    pair = pair_of(p, rows({"prompt": [USER], "chosen": answer, "rejected": [BAD]}), 0)
    with pytest.raises(DataError, match="says nothing"):
        pair.text(p, pair.chosen)


@pytest.mark.parametrize("row", [
    {"prompt": "q", "chosen": "x", "rejected": "x"}, {"prompt": [USER], "chosen": [GOOD], "rejected": [GOOD]},
])  # fmt: skip
def test_pair_of_one_answer_is_refused(row):
    with pytest.raises(DataError, match=r"d\.jsonl:1: the chosen answer is the rejected one"):
        pair_of(prompter(), rows(row), 0)


def test_messages_before_both_answers_may_be_of_either_name():
    for name in ("prompt", "messages"):
        row = rows({name: [USER], "chosen": "good", "rejected": "bad"})
        assert pair_of(prompter(), row, 0).prompt == [USER]
        assert prompt_text(prompter(), row, 0) == "<|user|>q\n<|assistant|>"
    both = rows({"prompt": None, "messages": [USER], "chosen": "good", "rejected": "bad"})
    assert pair_of(prompter(), both, 0).prompt == [USER]


def test_prompt_alone_is_enough_to_be_answered():
    assert prompt_text(prompter(), rows({"prompt": "q"}), 0) == "<|user|>q\n<|assistant|>"
    assert prompt_text(prompter(prompt="Q {x}"), rows({"x": "y", "chosen": "a"}), 0) == "<|user|>Q y\n<|assistant|>"
    assert prompt_text(prompter(), rows({"prompt": "q", "chosen": "good"}), 0) == "<|user|>q\n<|assistant|>"
    assert prompt_text(prompter(chat=False), rows({"chosen": "good", "rejected": "bad"}), 0) == ""


def test_row_with_one_answer_has_it_in_both_places():
    p = prompter()
    for row in ({"prompt": "q", "completion": "good"}, {"messages": [USER, GOOD]}):
        pair = answered(p, rows(row), 0)
        assert [m["content"] for m in pair.prompt] == ["q"]
        assert pair.chosen is pair.rejected
        assert [m["content"] for m in pair.chosen] == ["good"]
        assert pair.text(p) == "<|user|>q\n<|assistant|>"
    plain = answered(prompter(chat=False), rows({"prompt": "q", "completion": "good"}), 0)
    assert (plain.prompt, plain.chosen, plain.rejected) == ("q", "good<eos>", "good<eos>")
    templated = answered(prompter(prompt="Q {x}"), rows({"messages": [USER, GOOD], "x": "y", "completion": "z"}), 0)
    assert [m["content"] for m in templated.prompt] == ["Q y"]
    with pytest.raises(DataError, match="no answer") as caught:
        answered(p, rows({"messages": [USER, GOOD, USER]}), 0)
    assert "got: user" in str(caught.value)
