"""A tokenizer's chat template: what it writes of messages, with what it ends a turn, and what it does not read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from .images import parts_of
from .messages import ASSISTANT, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "\ue0f0answer\ue0f1"
"""Stands for an answer's text in trial renderings; of characters that no data and no template has."""
_GIVEN = ("messages", "tools", "documents", "add_generation_prompt", "chat_template", "tokenize")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CALL = {"type": "function", "id": "call00000", "function": {"name": "f", "arguments": {"x": 1}}}


@dataclass(frozen=True)
class Ending:
    """How the template ends an answer.

    Attributes:
        text: what follows an answer's text, up to the token that ends the turn.
        surplus: what only stands at the end of a whole conversation, and the model need not write.
        tokens: the tokens that end a turn.
        own: whether the template has such a token; else `text` ends in the tokenizer's end-of-sequence token.
    """

    text: str
    surplus: str
    tokens: tuple[str, ...]
    own: bool


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    _asked: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def source(self) -> str:
        """The template's text; of several, that of all."""
        own: Any = self.tokenizer.chat_template
        return "\n".join(own.values()) if isinstance(own, dict) else str(own or "")

    def reads(self, name: str) -> bool:
        """Whether the template names a key or variable."""
        if name not in self._asked:
            self._asked[name] = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", self.source) is not None
        return self._asked[name]

    def taken(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of its own that the template reads; what it is given anyway is no such."""
        return {name: value for name, value in options.items() if self.reads(name) and name not in _GIVEN}

    @cached_property
    def marks_answers(self) -> bool:
        """Whether it marks what is to be learnt (`{% generation %}`)."""
        return _GENERATION.search(self.source) is not None

    def render(
        self, messages: Sequence[Message], *, open_turn: bool, where: str = "data.chat_template",
        tools: list[dict[str, Any]] | None = None, options: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:  # fmt: skip
        """Messages as the template writes them, up to where the model's turn begins if `open_turn`.

        Raises:
            DataError: the template refuses them; in its own words.
        """
        with _refusing(where):
            return str(
                self.tokenizer.apply_chat_template(
                    self._given(messages),
                    tools=tools,
                    tokenize=False,
                    add_generation_prompt=open_turn,
                    **self.taken(options),
                )
            )

    def marked(
        self, messages: Sequence[Message], where: str, tools: list[dict[str, Any]] | None, options: Mapping[str, Any]
    ) -> list[tuple[int, int]]:
        """Where in the rendered messages the template marks what is to be learnt.

        Raises:
            DataError: the template refuses them.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        with _refusing(where):
            _, found = render_jinja_template(
                conversations=[self._given(messages)], tools=tools, return_assistant_tokens_mask=True,
                chat_template=self.tokenizer.get_chat_template(tools=tools),
                **{**self.tokenizer.special_tokens_map, **self.taken(options)},
            )  # fmt: skip
        return list(found[0])

    def _given(self, messages: Sequence[Message]) -> list[Message]:
        """Messages with the keys and roles that the template knows."""
        renamed = {} if self.reads("developer") else {"developer": "system"}
        return [
            {**{k: v for k, v in m.items() if k not in ("train", "images")}, "role": renamed.get(m["role"], m["role"]),
             "content": parts_of(m["content"]) if self._in_parts or "images" in m else m["content"]}
            for m in messages
        ]  # fmt: skip

    @cached_property
    def _in_parts(self) -> bool:
        """Whether it writes content only in parts, as some templates of models with images do."""
        tokenizer: Any = self.tokenizer
        for content, found in ((MARK, False), ([{"type": "text", "text": MARK}], True)):
            with suppress(*_refusals()):
                if MARK in tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False):
                    return found
        return False

    @cached_property
    def ending(self) -> Ending:
        """How it ends an answer, found by trying: what follows it at the very end, and what if the talk goes on."""
        closed, going_on = self._tail([]), self._tail([_says("user", "b")])
        last, followed = self._pieces(closed), self._pieces(going_on)
        shared = last[: shared_length(last, followed)]
        if len(shared) > 1:
            text = "".join(shared).rstrip()
            return Ending(text, closed[len(text) :].strip(), self._ends(text), own=True)
        if len(last) > 1:  # another token ends the last turn
            return Ending(closed.rstrip(), "", self._ends(closed.rstrip()), own=True)
        if len(followed) > 1 and not followed[0].strip():  # the last turn is left open
            text = "".join(followed[:2])
            return Ending(text, "", self._ends(text), own=True)
        eos = str(self.tokenizer.eos_token or "")
        return Ending(closed.rstrip() + eos, "", (eos,) if eos else (), own=False)

    def _ends(self, text: str) -> tuple[str, ...]:
        """The token that ends an answer, and that which ends a tool call."""
        out = {self._pieces(text)[-2]: None}
        if self.reads("tool_calls"):
            asked = [_says("user", "a"), {"role": ASSISTANT, "content": "", "tool_calls": [_CALL]}]
            last = (self._tried(asked) or "").rstrip()
            out |= {str(t): None for t in self.tokenizer.all_special_tokens if last.endswith(str(t))}
        return tuple(out)

    def _tail(self, more: list[Message]) -> str:
        """What follows an answer's text; empty if the template refuses every trial."""
        for head in ([_says("user", "a")], [_says("system", "s"), _says("user", "a")]):
            text = self._tried([*head, _says(ASSISTANT, MARK), *more])
            if text is not None and MARK in text:
                return text[text.rindex(MARK) + len(MARK) :]
        return ""

    def _tried(self, messages: list[Message]) -> str | None:
        try:
            return self.render(messages, open_turn=False)
        except DataError:
            return None

    def _pieces(self, text: str) -> list[str]:
        """A text cut at the tokens that stand for more than their letters; these are every second piece."""
        return self._tokens.split(text)

    @cached_property
    def _tokens(self) -> re.Pattern[str]:
        added = {str(token.content) for token in self.tokenizer.added_tokens_decoder.values()}
        added |= {str(token) for token in self.tokenizer.all_special_tokens}
        longest_first = sorted(added, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def writes(self, role: str) -> bool:
        """Whether it writes messages of a role; those that it refuses are told where they stand."""
        key = f"role {role}"
        if key not in self._asked:
            self._asked[key] = self._writes(role)
        return self._asked[key]

    def _writes(self, role: str) -> bool:
        user, answer = _says("user", "a"), _says(ASSISTANT, "b")
        call = {"role": ASSISTANT, "content": "", "tool_calls": [_CALL]}
        trial = {
            ASSISTANT: [user, _says(ASSISTANT, MARK)],
            "system": [_says("system", MARK), user, answer],
            "developer": [_says("developer", MARK), user, answer],
            "tool": [user, call, {**_says("tool", MARK), "name": "f", "tool_call_id": "call00000"}],
        }.get(role)
        text = self._tried(trial) if trial is not None else None
        return text is None or MARK in text or MARK.encode("unicode_escape").decode() in text


def _says(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _refusals() -> tuple[type[Exception], ...]:
    """What the code of a template raises."""
    from jinja2 import TemplateError

    return TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError


@contextmanager
def _refusing(where: str) -> Iterator[None]:
    """Tells what a template refuses with file and line."""
    try:
        yield
    except _refusals() as error:
        words = str(error).strip() or type(error).__name__
        raise DataError("the chat template refuses the messages", where=where, got=words,
                        fix="change the rows, or the template") from error  # fmt: skip


def shared_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How far two sequences are the same."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def ids_of(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> list[int]:
    """The numbers of tokens that the tokenizer has as such."""
    numbers = [(token, tokenizer.convert_tokens_to_ids(token)) for token in tokens]
    return [n for token, n in numbers if isinstance(n, int) and tokenizer.convert_ids_to_tokens(n) == token]
