"""For every family of templates: what is learnt is what the model has to write after what inference sends."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest

from afina.errors import DataError
from afina.train.answers.generate import end_tokens
from afina.train.data.encode import IGNORED, encode_answers
from afina.train.data.prompts import Prompter
from afina.train.recipe.sections import DataSection

from ..data.test_encode import rows
from .families import FAMILIES

BY_NAME = {family.name: family for family in FAMILIES}


def encoded(family, messages, **options):
    """The items of one row of messages, and the prompter that made them."""
    row = options.pop("row", {})
    prompter = Prompter(DataSection(train="d.jsonl", **options), family.tokenizer())
    return encode_answers(rows({"messages": messages, **row}), prompter, len(prompter.tokenizer)).items, prompter


def learnt(item):
    """The runs of trained tokens: (where it begins, ids)."""
    out = []
    for at, label in enumerate(item["labels"]):
        if label == IGNORED:
            continue
        if not out or out[-1][0] + len(out[-1][1]) != at:
            out.append((at, []))
        out[-1][1].append(label)
    return out


def sent(tokenizer, messages):
    """What an inference engine sends for messages."""
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)["input_ids"])


@pytest.mark.parametrize("turns", ["auto", "each"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_learnt_is_what_the_model_writes_after_the_prompt_that_inference_sends(family, turns):
    talk = family.talk()
    items, prompter = encoded(family, talk, turns=turns)
    assert len(items) == (family.sequences if turns == "auto" else 2)
    runs = [(item, at, ids) for item in items for at, ids in learnt(item)]
    answered = [i for i, message in enumerate(talk) if message["role"] == "assistant"]
    assert len(runs) == len(answered)
    for (item, at, ids), index, answer in zip(runs, answered, family.answers, strict=True):
        assert prompter.tokenizer.decode(ids) == answer
        assert item["input_ids"][:at] == sent(prompter.tokenizer, talk[:index])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_prompt_of_predict_is_that_of_training(family):
    talk = family.talk()
    prompter = Prompter(DataSection(train="d.jsonl"), family.tokenizer())
    for row in (talk, talk[:-1]):  # with an answer, and ending in the question
        text = prompter.prompt(rows({"messages": row}), 0, "chat")
        assert text == prompter.tokenizer.apply_chat_template(talk[:-1], add_generation_prompt=True, tokenize=False)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_generation_stops_at_every_token_that_ends_an_answer(family):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[5, 7]))
    prompter = Prompter(DataSection(train="d.jsonl"), family.tokenizer())
    ids = end_tokens(model, prompter)
    assert {5, 7} <= set(ids)
    assert set(prompter.tokenizer.convert_tokens_to_ids(list(family.ends))) == set(ids) - {5, 7}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_prompt_and_completion_are_learnt_as_the_same_messages(family):
    question, answer = {"role": "user", "content": "Name a river"}, {"role": "assistant", "content": "Tejo"}
    (item,), prompter = encoded(family, [question, answer])
    row = rows({"prompt": "Name a river", "completion": "Tejo"})
    (same,) = encode_answers(row, prompter, len(prompter.tokenizer)).items
    lists = rows({"prompt": [question], "completion": [answer]})
    assert same == item == encode_answers(lists, prompter, len(prompter.tokenizer)).items[0]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_no_token_of_begin_or_end_stands_twice(family):
    items, prompter = encoded(family, family.talk())
    special = [prompter.tokenizer.bos_token_id, *prompter.tokenizer.convert_tokens_to_ids(list(family.ends))]
    for item in items:
        assert not [a for a, b in pairwise(item["input_ids"]) if a == b and a in special]


def test_last_learns_the_last_answer_only():
    (item,), prompter = encoded(BY_NAME["ChatML"], BY_NAME["ChatML"].talk(), turns="last")
    assert [prompter.tokenizer.decode(ids) for _, ids in learnt(item)] == ["Douro<|im_end|>"]


def test_all_is_refused_where_the_template_writes_earlier_turns_anew():
    family = BY_NAME["Qwen 3 thinking"]
    with pytest.raises(DataError, match=r"^d\.jsonl:1: the chat template writes earlier turns otherwise"):
        encoded(family, family.talk(), turns="all")


def test_how_turns_are_learnt_is_said():
    for name, words in (("ChatML", "all answers in one sequence"), ("Qwen 3 thinking", "a sequence for each answer")):
        _, prompter = encoded(BY_NAME[name], BY_NAME[name].talk())
        assert len(prompter.ledger.lines) == 1
        assert words in prompter.ledger.lines[0]


@pytest.mark.parametrize("name", ["Gemma 2", "Mistral v1"])
def test_refusal_of_a_template_is_told_with_its_line_and_words(name):
    words = {"Gemma 2": "System role not supported", "Mistral v1": "Conversation roles must alternate"}[name]
    with pytest.raises(DataError, match=rf"d\.jsonl:1: the chat template refuses the messages\ngot: {words}"):
        encoded(BY_NAME[name], [{"role": "system", "content": "s"}, *BY_NAME[name].talk()])


def test_thoughts_within_the_content_are_learnt_as_those_in_a_key_of_their_own():
    for name in ("Qwen 3 thinking", "DeepSeek R1"):
        family = BY_NAME[name]
        inline = [{"role": m["role"], "content": f"<think>\n{m['reasoning_content']}\n</think>\n\n{m['content']}"}
                  if m["role"] == "assistant" else m for m in family.talk()]  # fmt: skip
        items, prompter = encoded(family, inline, turns="each")
        assert [prompter.tokenizer.decode(ids) for i in items for _, ids in learnt(i)] == list(family.answers)


def test_answer_without_a_thought_closes_the_one_that_the_prompt_begins():
    family = BY_NAME["DeepSeek R1"]
    items, prompter = encoded(family, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<b>a</b>"}])
    assert prompter.tokenizer.decode(learnt(items[0])[0][1]) == "\n</think>\n\n<b>a</b>" + family.eos


def test_question_of_one_word_of_the_turns_head_is_a_question():
    for word in ("think", "n", "<think>"):
        items, prompter = encoded(BY_NAME["DeepSeek R1"], [{"role": "user", "content": word},
                                                           {"role": "assistant", "content": "a"}])  # fmt: skip
        assert prompter.tokenizer.decode(learnt(items[0])[0][1]).endswith(
            "</think>\n\na" + prompter.tokenizer.eos_token
        )


def test_tool_calls_and_results_are_read_and_learnt():
    call = {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]}  # fmt: skip
    talk = [{"role": "user", "content": "q"}, call, {"role": "tool", "content": "two"},
            {"role": "assistant", "content": "2"}]  # fmt: skip
    answers = {
        "Qwen 2.5 instruct": ['<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>',
                              "2<|im_end|>"],
        "gpt-oss (harmony)": [' to=functions.f<|channel|>commentary json<|message|>{"x": 1}<|call|>',
                              "<|channel|>final<|message|>2<|return|>"],
        "Mistral v3": ['[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}]</s>', " 2</s>"],
    }  # fmt: skip
    for name, expected in answers.items():
        items, prompter = encoded(BY_NAME[name], talk)
        assert [prompter.tokenizer.decode(ids) for i in items for _, ids in learnt(i)] == expected
        assert not prompter.ledger.unread
    with pytest.raises(DataError, match="cannot write tool calls"):
        encoded(BY_NAME["Gemma 3"], talk)


@pytest.mark.parametrize("given", ['[{"name": "f", "parameters": {}}]', [{"name": "f", "parameters": {}}],
                                   [{"type": "function", "function": {"name": "f", "parameters": {}}}]])  # fmt: skip
def test_tools_of_a_row_reach_the_template(given):
    family = BY_NAME["Qwen 2.5 instruct"]
    (item,), prompter = encoded(family, family.talk(), row={"tools": given})
    assert '{"type": "function", "function": {"name": "f", "parameters": {}}}' in prompter.tokenizer.decode(
        item["input_ids"]
    )
    assert not prompter.ledger.unread


def test_tools_that_the_template_has_no_place_for_are_named():
    family = BY_NAME["ChatML"]
    _, prompter = encoded(family, family.talk(), row={"tools": '[{"name": "f"}]'})
    assert prompter.ledger.unread_line == "column 'tools', for which the chat template has no place (1)"


def test_switches_of_messages_decide_what_is_learnt():
    family = BY_NAME["ChatML"]
    for switch in ({"weight": 0}, {"train": False}, {"loss": False}, {"weight": 0.0}):
        talk = family.talk()
        talk[2] |= switch
        (item,), prompter = encoded(family, talk)
        assert [prompter.tokenizer.decode(ids) for _, ids in learnt(item)] == ["Douro<|im_end|>"]
        assert not prompter.ledger.unread
    talk[2]["weight"] = 0.5
    with pytest.raises(DataError, match="'weight' of a message says whether it is learnt"):
        encoded(family, talk)


def test_empty_answers_are_not_learnt_and_counted():
    family = BY_NAME["ChatML"]
    talk = [*family.talk(), {"role": "user", "content": "more"}, {"role": "assistant", "content": " "}]
    (item,), prompter = encoded(family, talk)
    assert len(learnt(item)) == 2
    assert "empty answers, which are not learnt: 1" in prompter.ledger.lines


def test_an_answer_that_nothing_stands_before_is_read_but_not_learnt():
    family = BY_NAME["ChatML"]
    talk = [{"role": "assistant", "content": "Hello!"}, *[m for m in family.talk() if m["role"] != "system"]]
    (item,), prompter = encoded(family, talk)
    assert "Hello!" in prompter.tokenizer.decode(item["input_ids"])
    assert all("Hello!" not in prompter.tokenizer.decode(ids) for _, ids in learnt(item))
    assert len(learnt(item)) == 2
    assert "answers that nothing stands before, which are not learnt: 1" in prompter.ledger.lines


def test_keys_and_roles_that_the_template_does_not_write_are_named():
    family = BY_NAME["ChatML"]
    talk = family.talk()
    talk[1]["mood"] = talk[3]["mood"] = "good"
    _, prompter = encoded(family, talk)
    assert prompter.ledger.unread_line == "key 'mood' of messages (2)"


def test_developer_is_the_system_where_the_template_knows_none():
    talk = BY_NAME["ChatML"].talk()
    (item,), _ = encoded(BY_NAME["ChatML"], [{**talk[0], "role": "developer"}, *talk[1:]])
    assert item == encoded(BY_NAME["ChatML"], talk)[0][0]
    assert "developer" in BY_NAME["gpt-oss (harmony)"].template


def test_template_without_an_end_ends_in_the_tokenizers():
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    prompter = Prompter(DataSection(train="d"), BY_NAME["ChatML"].tokenizer())
    prompter.tokenizer.chat_template = template
    row = rows({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    (item,) = encode_answers(row, prompter, len(prompter.tokenizer)).items
    assert prompter.tokenizer.decode(learnt(item)[0][1]) == "a<|im_end|>"
    assert "since the chat template has none" in prompter.ledger.lines[0]


def test_end_of_turn_that_is_no_token_is_learnt_before_the_tokenizers_and_not_told():
    prompter = Prompter(DataSection(train="d"), BY_NAME["Granite"].tokenizer())
    prompter.tokenizer.chat_template = BY_NAME["ChatML"].template
    row = rows({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    (item,) = encode_answers(row, prompter, len(prompter.tokenizer)).items
    assert prompter.tokenizer.decode(learnt(item)[0][1]) == "a<|im_end|><|end_of_text|>"
    assert prompter.said("a<|im_end|>") == "a"
    two = [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]
    assert len(encode_answers(rows({"messages": two}), prompter, len(prompter.tokenizer)).items) == 2


def test_marks_of_the_template_keep_what_they_leave_out_from_the_loss():
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}note: "
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    prompter = Prompter(DataSection(train="d"), BY_NAME["ChatML"].tokenizer())
    prompter.tokenizer.chat_template = template
    row = rows({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    (item,) = encode_answers(row, prompter, len(prompter.tokenizer)).items
    assert [prompter.tokenizer.decode(ids) for _, ids in learnt(item)] == ["a<|im_end|>"]
    assert prompter.tokenizer.decode(item["input_ids"]).endswith("assistant\nnote: a<|im_end|>")


def test_options_of_a_row_reach_the_template_and_others_are_named():
    family = BY_NAME["Qwen 3 thinking"]
    options = {"chat_template_kwargs": {"enable_thinking": False, "tools": 1, "style": "x"}}
    plain = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in family.talk()]
    items, prompter = encoded(family, plain, row=options)
    runs = [(prompter.tokenizer.decode(i["input_ids"][:at]), prompter.tokenizer.decode(ids))
            for i in items for at, ids in learnt(i)]  # fmt: skip
    assert [answer for _, answer in runs] == ["Tejo<|im_end|>", "Douro<|im_end|>"]
    assert all(prompt.endswith("<think>\n\n</think>\n\n") for prompt, _ in runs)
    assert prompter.ledger.unread_line == (
        "option 'tools' of the chat template (1), option 'style' of the chat template (1)"
    )


def test_thought_that_the_prompt_has_closed_is_not_learnt_and_named():
    family = BY_NAME["Qwen 3 thinking"]
    items, prompter = encoded(family, family.talk(), row={"chat_template_kwargs": {"enable_thinking": False}})
    assert [prompter.tokenizer.decode(ids) for i in items for _, ids in learnt(i)] == [
        "Tejo<|im_end|>", "Douro<|im_end|>"
    ]  # fmt: skip
    assert "thoughts of answers" in prompter.ledger.unread_line


def test_template_that_writes_the_question_anew_once_it_is_answered_is_refused():
    prompter = Prompter(DataSection(train="d"), BY_NAME["ChatML"].tokenizer())
    prompter.tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ '?' if m.role == 'user' and add_generation_prompt else m.role }}\n"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    row = rows({"messages": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "a"}]})
    with pytest.raises(DataError, match=r"d\.jsonl:1: the chat template writes what stands before"):
        encode_answers(row, prompter, len(prompter.tokenizer))


def test_template_that_takes_content_in_parts_gets_parts():
    prompter = Prompter(DataSection(train="d"), BY_NAME["ChatML"].tokenizer())
    prompter.tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}"
        "{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    row = rows({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    (item,) = encode_answers(row, prompter, len(prompter.tokenizer)).items
    assert prompter.tokenizer.decode(item["input_ids"]) == BY_NAME["ChatML"].tokenizer().apply_chat_template(
        row.values[0]["messages"], tokenize=False
    ).rstrip("\n")


LONG = [{"role": "system", "content": "Be brief"}] + [
    {"role": role, "content": f"{role[0]}{n} " + "x" * 20} for n in range(4) for role in ("user", "assistant")
]


def of_length(limit, turns, talk=LONG):
    items, prompter = encoded(BY_NAME["ChatML"], talk, turns=turns, max_length=limit, allow_masked=True)
    return [prompter.tokenizer.decode(item["input_ids"]) for item in items], items, prompter


@pytest.mark.parametrize("turns", ["each", "last"])
def test_answers_that_do_not_fit_lose_the_oldest_exchanges_before_them(turns):
    whole, items, _ = of_length(10_000, turns)
    limit = max(map(len, (item["input_ids"] for item in items))) - 30
    texts, items, prompter = of_length(limit, turns)
    assert len(texts) == len(whole)
    assert texts[-1] != whole[-1]
    assert texts[-1].startswith("<|im_start|>system\nBe brief<|im_end|>")
    assert "u0 " not in texts[-1]
    assert "u2 " in texts[-1]
    for n, item in zip(range(4)[-len(items) :], items, strict=True):
        ((_, ids),) = learnt(item)
        assert prompter.tokenizer.decode(ids) == LONG[2 * n + 2]["content"] + "<|im_end|>"
        assert len(item["input_ids"]) <= limit
    # What is left is what inference sends of those messages.
    first = next(i for i, m in enumerate(LONG) if m["content"] in texts[-1] and m["role"] == "user")
    kept = [LONG[0], *LONG[first:-1]]
    assert texts[-1].startswith(prompter.opened(kept))
    assert any("without the oldest exchanges" in line for line in prompter.ledger.lines)


def test_answers_that_cannot_fit_are_dropped_and_counted():
    with pytest.raises(DataError, match=r"4 of 4 sequences have no answer left within data\.max_length=40"):
        of_length(40, "each")


def test_answers_beyond_the_length_of_one_sequence_are_counted():
    (text,), _, prompter = of_length(120, "all")
    assert "a3 " not in text
    (line,) = (line for line in prompter.ledger.lines if "beyond data.max_length" in line)
    assert line.endswith(f": {sum(m['content'][:2] not in text for m in LONG[2::2])}")
