"""What of a row reaches the model: system messages, earlier turns, and what nothing reads."""

from __future__ import annotations

import pytest

from afina.errors import DataError, RecipeError
from afina.train.data.encode import encode_answers
from afina.train.data.formats import recognise
from afina.train.data.prompts import columns_of

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


# -- what a prompter gives of a row ------------------------------------------------------------------------------------


def test_template_names_its_columns():
    assert columns_of("{a} and {b c}: {{x}}", "data.prompt") == ["a", "b c"]
    assert columns_of("plain", "data.prompt") == []
    with pytest.raises(RecipeError, match=r"data\.completion: malformed template"):
        columns_of("{a", "data.completion")


FORMATS = [
    ({"messages": [ASKED]}, {}, "chat"), ({"prompt": "q", "completion": "a"}, {}, "prompt_completion"),
    ({"messages": [ASKED], "x": "y"}, {"prompt": "{x}"}, "prompt_completion"),
    ({"x": "y"}, {"prompt": "{x}"}, "prompt_completion"), ({"x": "y"}, {"format": "chat"}, "chat"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "data", "expected"), FORMATS)
def test_format_is_the_recipes_or_that_of_the_columns(row, data, expected):
    assert prompter(**data).resolved_format(rows(row)) == expected
    if "format" not in data:
        assert prompter(**data).question_format(rows(row)) == expected


def test_columns_that_fit_no_format_are_named():
    with pytest.raises(DataError, match="cannot tell prompt from answer") as caught:
        prompter().resolved_format(rows({"x": 1, "completion": "a"}))
    assert "'x', 'completion'" in str(caught.value)
    assert prompter().question_format(rows({"x": 1})) == "prompt_completion"


@pytest.mark.parametrize("kind", ["chat", "prompt_completion"])
def test_row_is_given_whole_as_a_prompt_and_as_an_answer(kind):
    p = prompter()
    row = rows({"messages": [ASKED, ANSWER]} if kind == "chat" else {"prompt": "q", "completion": "a"})
    assert p.whole(row, 0, kind) == "<|user|>q\n<|assistant|>a<eos>\n"
    assert p.prompt(row, 0, kind) == "<|user|>q\n<|assistant|>"
    assert p.answer(row, 0, kind) == "a"


def test_row_outside_of_a_chat_template_is_its_text_and_an_end():
    p = prompter(chat=False)
    row = rows({"prompt": "q ", "completion": "a"})
    assert (p.whole(row, 0, "prompt_completion"), p.prompt(row, 0), p.plain(row, 0)) == ("q a<eos>", "q ", "q ")
    assert p.chats is False
    assert prompter(chat_template=False).chats is False
    assert prompter().chats is True


def test_answer_of_messages_is_the_last_if_it_is_the_models():
    p = prompter()
    talk = [ASKED, ANSWER, says("user", "p")]
    assert p.answer(rows({"messages": talk}), 0, "chat") == ""
    assert p.answer(rows({"messages": [*talk, says("assistant", "b")]}), 0, "chat") == "b"
    assert p.answer(rows({"completion": [says("assistant", "c")]}), 0) == "c"
    assert p.answer(rows({"completion": says("assistant", "c")}), 0) == "c"
    assert prompter(completion="is {x}").answer(rows({"x": 3, "completion": [ANSWER]}), 0) == "is 3"


def test_conversation_without_the_models_turn_is_no_example():
    p = prompter()
    with pytest.raises(DataError, match=r"d\.jsonl:1: no message has the role 'assistant'"):
        p.turns(rows({"messages": [ASKED]}), 0, "chat")


def test_numbers_are_written_out_and_nothing_else_is():
    p = prompter(prompt="{x}")
    assert [p.plain(rows({"x": x}), 0) for x in (3, 2.5, "t", 0)] == ["3", "2.5", "t", "0"]
    for x in (True, None, ["t"]):
        with pytest.raises(DataError, match="column 'x' is not text"):
            p.plain(rows({"x": x}), 0)


@pytest.mark.parametrize("glued", ["counted", "with blank before", "with blank after", "nothing before"])
def test_missing_blank_between_prompt_and_answer_is_counted(glued):
    prompt, answer = {"counted": ("ab", "cd"), "with blank before": ("ab ", "cd"), "with blank after": ("ab", " cd"),
                      "nothing before": ("", "cd")}[glued]  # fmt: skip
    p = prompter(chat=False)
    for _ in range(2):
        p.turns(rows({"prompt": prompt, "completion": answer}), 0, "prompt_completion")
    assert list(p.ledger.told.values()) == ([2] if glued == "counted" else [])


def test_empty_answers_are_counted():
    p = prompter(chat=False)
    assert p.turns(rows({"prompt": "a ", "completion": " "}), 0, "prompt_completion") == []
    assert list(p.ledger.told.values()) == [1]


def test_free_text_stands_where_the_one_column_of_the_template_does():
    assert prompter(prompt="Q: {x}!").asked("t") == "Q: t!"
    assert prompter().asked("t") == "t"
    assert prompter(prompt="{x} {y}").asked("t") == "t"
    assert prompter(prompt="fixed").asked("t") == "t"


def test_conversation_without_a_chat_template_is_its_last_message():
    p = prompter(chat=False, system="s")
    assert p.conversation([ASKED, ANSWER]) == "a"
    assert p.wrap("t") == "t"
    assert prompter(system="s").wrap("t") == "<|system|>s\n<|user|>t\n<|assistant|>"
    assert prompter().opened([ASKED]) == "<|user|>q\n<|assistant|>"


def test_answer_ends_once_and_nothing_stands_behind_its_end():
    p = prompter(chat=False)
    assert (p.ended("a"), p.ended("a<eos>"), p.ended("a<eos>\n"), p.ended("<eos>a")) == (
        "a<eos>", "a<eos>", "a<eos>", "<eos>",
    )  # fmt: skip
    assert p.ended("a<eos>b<eos> ") == "a<eos>b<eos>"
    p.tokenizer.eos_token = None
    assert p.ended("a") == "a"


def test_answer_that_was_said_has_no_blanks_around_it_and_no_end_of_a_turn():
    assert prompter().said(" a \n") == prompter(chat=False).said(" a \n") == "a"
    p = prompter()
    p.tokenizer.chat_template = TEMPLATE_ENDS_IN_WORDS
    assert p.said(" a [END] ") == "a"
    assert p.said("a [END] b") == "a [END] b"
    assert prompter().said("a [END]") == "a [END]"


TEMPLATE_ENDS_IN_WORDS = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} [END]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def test_system_message_of_messages_or_of_the_row_comes_before_that_of_the_recipe():
    p = prompter(system="r")
    assert p.led([ASKED]) == [says("system", "r"), ASKED]
    assert p.led([ASKED], "s") == [says("system", "s"), ASKED]
    assert p.led([]) == [says("system", "r")]
    for role in ("system", "developer"):
        own = [says(role, "o"), ASKED]
        assert p.led(own, "s") is own
    assert prompter().led([ASKED]) == [ASKED]


def test_system_column_that_a_template_uses_is_no_system_message():
    row = rows({"system": "s", "prompt": "q", "completion": "a"})
    assert prompter().prompt(row, 0) == "<|system|>s\n<|user|>q\n<|assistant|>"
    assert prompter(prompt="{system}: {prompt}").prompt(row, 0) == "<|user|>s: q\n<|assistant|>"
    for empty in ("", None):
        assert prompter().prompt(rows({"prompt": "q", "system": empty}), 0) == "<|user|>q\n<|assistant|>"
    with pytest.raises(DataError, match="'system' is not text"):
        prompter().prompt(rows({"prompt": "q", "system": 3}), 0)


def test_options_for_the_template_are_an_object_without_what_is_null():
    p = prompter()
    talk = p.with_extras(rows({"chat_template_kwargs": {"a": 1, "b": None}}), 0, [ASKED])
    assert (talk.options, talk.where) == ({"a": 1}, "d.jsonl:1")
    assert p.with_extras(rows({"x": 1}), 0, [ASKED]).options == {}
    with pytest.raises(DataError, match="is no object"):
        p.with_extras(rows({"chat_template_kwargs": [1]}), 0, [ASKED])


def test_earlier_turns_are_pairs_or_messages():
    p = prompter()
    row = {"prompt": "q", "completion": "a"}

    def before(history):
        return p.talk(rows({**row, "history": history}), 0, "prompt_completion", answered=True).messages

    asked, answer = {**ASKED, "train": False}, ANSWER
    assert before([["b", "c"]]) == [says("user", "b"), says("assistant", "c"), asked, answer]
    assert before([says("user", "b")])[0]["content"] == "b"
    assert before([]) == before(None) == [asked, answer]
    for bad in ("b", [["b"]], [["b", "c", "d"]], [["b", 3]], ["b"], {"b": "c"}):
        with pytest.raises(DataError, match=r"d\.jsonl:1: .*history"):
            before(bad)


def test_messages_of_one_side_go_with_text_of_the_other():
    p = prompter()
    talk = p.talk(rows({"prompt": [ASKED], "completion": "a"}), 0, "prompt_completion", answered=True)
    assert [(m["role"], m["content"]) for m in talk.messages] == [("user", "q"), ("assistant", "a")]
    talk = p.talk(rows({"prompt": "q", "completion": ANSWER}), 0, "prompt_completion", answered=True)
    assert [(m["role"], m["content"]) for m in talk.messages] == [("user", "q"), ("assistant", "a")]
    asked = p.talk(rows({"prompt": "q"}), 0, "prompt_completion", answered=False)
    assert [m["content"] for m in asked.messages] == ["q"]
    assert prompter(chat=False).talk(rows({"prompt": "q"}), 0, "prompt_completion", answered=False) is None
    p = prompter(completion="{x}")
    talk = p.talk(rows({"prompt": "q", "x": "t", "completion": [ANSWER]}), 0, "prompt_completion", answered=True)
    assert talk.messages[-1]["content"] == "t"


def test_answers_that_are_called_bad_are_refused_unless_a_template_reads_the_label():
    row = {"prompt": "q", "completion": "a", "label": False}
    with pytest.raises(DataError, match="label: false"):
        prompter().refuse_unwanted(rows(row), 0)
    prompter().refuse_unwanted(rows({**row, "label": True}), 0)
    prompter().refuse_unwanted(rows({**row, "label": 0}), 0)
    prompter(label_column="other").refuse_unwanted(rows(row), 0)
    prompter(prompt="{prompt} {label}").refuse_unwanted(rows(row), 0)
    prompter(completion="{label}").refuse_unwanted(rows(row), 0)
