"""The answers of a conversation: what the model reads before each, and what it then has to write, to the byte.

What it reads is what inference sends: the messages before, rendered up to where the model's turn begins. What it has to
write is the rest of the rendering that ends with the answer. Where a template renders its last turn otherwise than it
opens it (a thought that it opens, or takes away), the rest is put together from the parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import DataError
from ..report.events import Span
from .chat_template import MARK, ChatTemplate, shared_length
from .ledger import Ledger
from .messages import ASSISTANT, REASONING, Message, is_empty, thought_of

THOUGHTS = (
    ("<think>\n", "\n</think>\n\n"), ("<|channel>thought\n", "\n<channel|>"), ("<thinking>\n", "\n</thinking>\n\n"),
    ("[THINK]", "[/THINK]"), ("<|START_THINKING|>", "<|END_THINKING|>"), ("<seed:think>\n", "\n</seed:think>\n\n"),
)  # fmt: skip
"""What stands before and after a thought, in the families that have them."""


@dataclass(frozen=True)
class Conversation:
    """Messages, with what else the template is given, and where they come from."""

    messages: list[Message]
    where: str
    tools: list[dict[str, Any]] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def opened(self, template: ChatTemplate, upto: int | None = None) -> str:
        """What the model reads before it answers the first `upto` messages."""
        return template.render(
            self.messages[:upto], open_turn=True, where=self.where, tools=self.tools, options=self.options
        )

    def closed(self, template: ChatTemplate) -> str:
        """All of it, answers included, as the template writes it where nothing is to be answered."""
        return template.render(self.messages, open_turn=False, where=self.where, tools=self.tools, options=self.options)

    @property
    def asked(self) -> Conversation:
        """The messages without the answer that they may end in."""
        answered = self.messages[-1]["role"] == ASSISTANT
        return Conversation(self.messages[:-1] if answered else self.messages, self.where, self.tools, self.options)


@dataclass(frozen=True)
class Turn:
    """A prompt as inference sends it, and the answer, cut where the loss begins and ends; `talk` ends in the answer."""

    prompt: str
    answer: list[Span]
    talk: Conversation | None = field(default=None, compare=False, repr=False)


def shorter(template: ChatTemplate, turn: Turn) -> Turn | None:
    """The same answer, in a conversation without its oldest exchange; its system message stays. None where the answer
    has no older one.

    Raises:
        DataError: the template refuses the messages that are left.
    """
    if turn.talk is None:
        return None
    messages = turn.talk.messages
    start = next((i for i, m in enumerate(messages) if m["role"] not in ("system", "developer")), 0)
    after = next((i for i, m in enumerate(messages) if i > start and m["role"] == "user"), None)
    if after is None:
        return None
    left = [*messages[:start], *({**m, "train": False} for m in messages[after:-1]), messages[-1]]
    found = turns_of(template, replace(turn.talk, messages=left), Ledger())
    return found[-1] if found else None


def turns_of(template: ChatTemplate, talk: Conversation, ledger: Ledger) -> list[Turn]:
    """The answers of a conversation that are to be learnt.

    Raises:
        DataError: the template refuses the messages, or cannot write a tool call.
    """
    ledger.unread.update(_unread(template, talk))
    if any(m.get("tool_calls") for m in talk.messages) and not template.reads("tool_calls"):
        raise DataError("the chat template cannot write tool calls", where=talk.where,
                        fix="leave such rows out, or take a model that calls tools")  # fmt: skip
    if not template.ending.own:
        ledger.told[
            "conversations whose answers end in the tokenizer's end token, since the chat template has none"
        ] += 1
    if not template.writes(ASSISTANT):
        raise DataError("the chat template writes no answers of text", where=talk.where, fix="use another template")
    out = []
    for index, message in enumerate(talk.messages):
        if message["role"] != ASSISTANT or message.get("train") is False:
            continue
        if is_empty(message):
            ledger.told["empty answers, which are not learnt"] += 1
            continue
        if not index:  # no inference has such a prompt, and transformers renders none
            ledger.told["answers that nothing stands before, which are not learnt"] += 1
            continue
        prompt = talk.opened(template, index)
        answer = _answer(template, talk, index, prompt)
        if _thought(message)[0] not in "".join(span.text for span in answer):
            ledger.unread["thoughts of answers, for which the prompt or the chat template has no place"] += 1
        if answer:
            out.append(Turn(prompt, answer, replace(talk, messages=talk.messages[: index + 1])))
        else:
            ledger.told["answers that the chat template does not mark ({% generation %}), which are not learnt"] += 1
    return out


def _answer(template: ChatTemplate, talk: Conversation, index: int, prompt: str) -> list[Span]:
    messages = talk.messages[: index + 1]
    given: dict[str, Any] = {"where": talk.where, "tools": talk.tools, "options": talk.options}
    whole = template.render(messages, open_turn=False, **given)
    message = messages[-1]
    if whole.startswith(prompt) and _has_thought(template, message, whole[len(prompt) :]):
        text = _ended(template, message, whole[len(prompt) :])
        if not template.marks_answers:
            return [Span(text, True)]
        rendered = len(whole.rstrip())
        marks = [(a - len(prompt), min(b, rendered) - len(prompt)) for a, b in template.marked(messages, **given)]
        return _cut(text, marks, template.ending.text)
    blank = {key: value for key, value in message.items() if key not in (*REASONING, "tool_calls")}
    trial = template.render([*messages[:-1], {**blank, "content": MARK}], open_turn=False, **given)
    start = min(shared_length(prompt, trial), shared_length(prompt, whole))
    if index and start < len(prompt) - _opening(template, messages[:-1], given):
        raise DataError("the chat template writes what stands before an answer otherwise once it is answered",
                        where=talk.where, fix="leave such rows out, or mend the template")  # fmt: skip
    return [Span(_ended(template, message, _rebuilt(template, message, prompt[start:], whole[start:])), True)]


def _opening(template: ChatTemplate, messages: list[Message], given: dict[str, Any]) -> int:
    """How many characters of a prompt stand after the text of its last message."""
    trial = template.render([*messages[:-1], {**messages[-1], "content": MARK}], open_turn=True, **given)
    return len(trial.rpartition(MARK)[2])


def _rebuilt(template: ChatTemplate, message: Message, opener: str, rest: str) -> str:
    """The answer after a prompt that ends in `opener`, of whose rendering by the template `rest` is left."""
    thought, raw = _thought(message)
    for head, tail in THOUGHTS:
        begin, end = head.strip(), tail.strip()
        if end in opener.rpartition(begin)[2]:  # the prompt has closed the thought: none is written
            return rest.rpartition(end)[2].lstrip() if end in rest else rest
        _, found, begun = opener.rpartition(begin)
        if found and rest.lstrip().startswith(begin):
            return rest.lstrip().removeprefix(begin).removeprefix(begun)
        if found:
            return head[len(begin + begun) :] + thought + tail + rest.lstrip()
    if thought and thought not in rest:  # the template takes it away, but the model has to write it
        head, tail = next(way for way in THOUGHTS if way[1].strip() in (raw or template.source))
        return (raw or head + thought + tail) + rest.lstrip()
    return rest


def _thought(message: Message) -> tuple[str, str]:
    """An answer's thought, and the text of its content that holds it (empty where it has a key of its own)."""
    own = thought_of(message).strip()
    if own:
        return own, ""
    for head, tail in THOUGHTS:
        before, found, after = message["content"].partition(tail.strip())
        if found:
            blanks = after[: len(after) - len(after.lstrip())]
            return before.replace(head.strip(), "", 1).strip(), before + found + blanks
    return "", ""


def _has_thought(template: ChatTemplate, message: Message, rest: str) -> bool:
    """Whether a rendered answer has all of its thought, as far as the template can write thoughts at all."""
    thought, raw = _thought(message)
    return thought in rest or not (raw or knows_thoughts(template))


def knows_thoughts(template: ChatTemplate) -> bool:
    """Whether the template has the words that end a thought."""
    return any(tail.strip() in template.source for _, tail in THOUGHTS)


def _ended(template: ChatTemplate, message: Message, text: str) -> str:
    """A rendered answer up to the token that ends the turn."""
    ending, text = template.ending, text.rstrip()
    if ending.surplus:
        text = text.removesuffix(ending.surplus).rstrip()
    if text.endswith(ending.text.strip()) or (ending.own and message.get("tool_calls")):
        return text
    return text + (ending.text if ending.own else "".join(ending.tokens))


def _cut(text: str, marks: Sequence[tuple[int, int]], end: str) -> list[Span]:
    """An answer, cut where marks begin and end; the end of the turn is learnt with what stands before it."""
    out, done = [], 0
    for start, stop in marks:
        start, stop = max(start, done), min(stop, len(text))
        if end.strip().endswith(text[stop:].strip()):
            stop = len(text)
        if start >= stop:
            continue
        out += [Span(text[done:start], False)] * (start > done) + [Span(text[start:stop], True)]
        done = stop
    return [*out, Span(text[done:], False)] if out and done < len(text) else out


def _unread(template: ChatTemplate, talk: Conversation) -> Iterator[str]:
    """What the template does not write."""
    if talk.tools and not template.reads("tools"):
        yield "column 'tools', for which the chat template has no place"
    yield from (
        f"option {name!r} of the chat template" for name in talk.options if name not in template.taken(talk.options)
    )
    for message in talk.messages:
        if not template.writes(message["role"]):
            yield f"messages of role {message['role']!r}, which the chat template leaves out"
        for key in message:
            if key not in ("role", "content", "images", "train", "tool_calls", *REASONING) and not template.reads(key):
                yield f"key {key!r} of messages"
