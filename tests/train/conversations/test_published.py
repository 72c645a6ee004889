"""The templates that TRL carries as their makers published them: no copy of them is here."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from afina.train.data.encode import encode_answers
from afina.train.data.prompts import Prompter
from afina.train.recipe.sections import DataSection

from .. import tiny
from ..data.test_encode import rows
from .test_turns import learnt

FOLDER = Path(find_spec("trl").origin).parent / "chat_templates"
FILES = sorted(path for path in FOLDER.glob("*.jinja"))
TOKEN = re.compile(r"<[|｜]?[a-zA-Z_▁|｜]+[|｜]?>|</s>")  # noqa: RUF001


def prompter_of(path, turns):
    tokenizer, template = tiny.tokenizer(chat=False), path.read_text(encoding="utf-8")
    found = {word for word in TOKEN.findall(template) if "think" not in word}
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(found)})
    tokenizer.chat_template = template
    return Prompter(DataSection(train="d.jsonl", turns=turns, max_length=4000), tokenizer)


def talk(path, thinks):
    system = [] if path.stem.startswith("gemma") and path.stem[5:6] in ("", "_") else ["system"]
    messages = [{"role": role, "content": "Be brief."} for role in system]
    for question, answer in (("Name a river", "Tejo"), ("Another", "Douro")):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        if thinks:
            messages[-1]["reasoning_content"] = f"It is {answer}?"
    return messages


def sent(prompter, messages):
    if prompter.template._in_parts:
        messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    return list(prompter.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])


def test_there_are_templates_of_many_families():
    assert len(FILES) > 20


@pytest.mark.parametrize("thinks", [False, True], ids=["plain", "thoughts"])
@pytest.mark.parametrize("turns", ["auto", "each"])
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_answer_follows_what_inference_sends_and_ends(path, turns, thinks):
    prompter, messages = prompter_of(path, turns), talk(path, thinks)
    items = encode_answers(rows({"messages": messages}), prompter, 10**6).items
    runs = [(item, at, ids) for item in items for at, ids in learnt(item)]
    answered = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(runs) == 2
    for (item, at, ids), index in zip(runs, answered, strict=True):
        assert item["input_ids"][:at] == sent(prompter, messages[:index])
        text = prompter.tokenizer.decode(ids)
        assert re.search(rf"{messages[index]['content']}\s*({TOKEN.pattern})+$", text), text
        assert thinks == (f"It is {messages[index]['content']}?" in text) or "thoughts of answers" in (
            prompter.ledger.unread_line
        )
        assert ids[-1] in prompter.tokenizer.convert_tokens_to_ids(list(prompter.template.ending.tokens))
