from __future__ import annotations

import pytest

from afina.errors import DataError
from afina.train.conversations.messages import is_empty, message_of, normalised, shared_system, tools_of

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
SHAPES = {
    "ShareGPT": ({"from": "human", "value": "a"}, {"role": "user", "content": "a"}),
    "a model": ({"from": "gpt", "value": "a"}, {"role": "assistant", "content": "a"}),
    "result": ({"from": "observation", "value": "a"}, {"role": "tool", "content": "a"}),
    "call": ({"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
             {"role": "assistant", "content": "", "tool_calls": [CALL]}),
    "OpenAI": ({"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", **CALL}]}),
    "old OpenAI": ({"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
                   {"role": "assistant", "content": "", "tool_calls": [CALL]}),
    "parts": ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
              {"role": "user", "content": "ab"}),
    "thought": ({"role": "assistant", "content": "a", "reasoning_content": "b"},
                {"role": "assistant", "content": "a", "reasoning_content": "b"}),
    "off": ({"role": "assistant", "content": "a", "weight": 0}, {"role": "assistant", "content": "a", "train": False}),
    "on": ({"role": "assistant", "content": "a", "loss": True}, {"role": "assistant", "content": "a"}),
    "nothing there": ({"role": "user", "content": "a", "tool_calls": None, "name": None},
                      {"role": "user", "content": "a"}),
    "name": ({"role": "tool", "content": "a", "name": "f"}, {"role": "tool", "content": "a", "name": "f"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_becomes_the_one_that_templates_read(name):
    given, expected = SHAPES[name]
    assert message_of(given, "d:1") == expected
    assert message_of(expected, "d:1") == expected


def test_json_in_text_is_a_list_of_messages_too():
    assert normalised('[{"role": "user", "content": "a"}]', "d:1") == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(("given", "words"), [
    ({"role": "user"}, "malformed message"), ({"content": "a"}, "malformed message"), (3, "malformed message"),
    ({"role": "usr", "content": "a"}, "unknown role"), ({"role": "user", "content": 3}, "is not text"),
    ({"role": "user", "content": [{"type": "audio", "audio": "x.wav"}]}, "neither text nor image"),
    ({"role": "assistant", "content": [{"type": "image", "image": "x.png"}]}, "an answer has an image"),
    ({"role": "assistant", "content": "a", "weight": 0.5}, "whether it is learnt"),
    ({"role": "assistant", "tool_calls": ["f"]}, "malformed tool call"),
    ({"from": "function_call", "value": "f(1)"}, "malformed tool call"),
])  # fmt: skip
def test_what_is_no_message_is_told_with_its_line(given, words):
    with pytest.raises(DataError, match=words) as caught:
        message_of(given, "d:1")
    assert str(caught.value).startswith("d:1: ")


@pytest.mark.parametrize("given", [[{"name": "f"}], '[{"name": "f"}]', ['{"name": "f"}'], {"name": "f"},
                                   [{"type": "function", "function": {"name": "f"}}]])  # fmt: skip
def test_tools_in_any_form_are_functions(given):
    assert tools_of(given, "d:1") == [{"type": "function", "function": {"name": "f"}}]


def test_no_tools_are_none_and_nonsense_is_refused():
    assert tools_of(None, "d:1") is None is tools_of("", "d:1") is tools_of([], "d:1")
    for wrong in ("f(x)", 3, [3]):
        with pytest.raises(DataError, match=r"d:1.*tool"):
            tools_of(wrong, "d:1")


def test_an_answer_is_empty_if_it_has_neither_text_nor_call_nor_thought():
    assert is_empty({"role": "assistant", "content": " \n"})
    assert not is_empty({"role": "assistant", "content": "", "tool_calls": [CALL]})
    assert not is_empty({"role": "assistant", "content": "", "reasoning": "b"})


def test_shared_system_is_that_of_all_rows_or_none():
    first, user = {"role": "system", "content": "s"}, {"role": "user", "content": "a"}
    assert shared_system([{"messages": [first, user]}, {"prompt": "a", "system": "s"}]) == "s"
    assert shared_system([{"messages": [first, user]}, {"messages": [user]}]) is None
    assert shared_system([{"messages": [first, user]}, {"system": "t"}]) is None
    assert shared_system([{"prompt": "a"}]) is None
