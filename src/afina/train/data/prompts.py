"""From rows to the text that the model reads: templates, chat messages, and the pieces that the loss is taken on."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import DataError, RecipeError, did_you_mean
from ..recipe.sections import DataSection
from ..report.events import Span
from .rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]


def columns_of(template: str, key: str) -> list[str]:
    """The columns that a template such as 'Tweet: {text}' names.

    Raises:
        RecipeError: the template is malformed or names something other than plain columns.
    """
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise RecipeError(f"malformed template ({error})", where=key, got=template[:80]) from error
    for name in names:
        if not name or name.isdigit() or set(name) & set(".["):
            what = "a template names columns as {column}; write {{ and }} for braces"
            raise RecipeError(what, where=key, got=template[:80])
    return names


@dataclass(frozen=True)
class Prompter:
    """Renders rows and free text for one tokenizer and one data section."""

    data: DataSection
    tokenizer: PreTrainedTokenizerBase

    @property
    def chats(self) -> bool:
        """Whether prompts go into the tokenizer's chat template."""
        return self.data.chat_template and bool(self.tokenizer.chat_template)

    def resolved_format(self, rows: Rows) -> str:
        """The format of `rows`: as the recipe says, else by the columns of the first row.

        Raises:
            DataError: no format fits the columns.
        """
        if self.data.format != "auto":
            return self.data.format
        columns = rows.values[0]
        if "messages" in columns and self.data.prompt is None:
            return "chat"
        if self.data.prompt is not None or {"prompt", "completion"} <= set(columns):
            return "prompt_completion"
        raise DataError(
            "cannot tell prompt from answer",
            where=rows.where(0),
            got=f"columns {', '.join(map(repr, columns))}",
            fix="name the columns, e.g. data.prompt='{question}' data.completion='{answer}'",
        )

    def spans(self, rows: Rows, index: int, kind: str) -> list[Span]:
        """A row as text, cut where the loss begins and ends. Every trained piece ends the model's turn.

        Raises:
            DataError: a column is missing or not text, or messages are malformed.
        """
        if kind == "chat":
            return self._turns(rows, index)
        return [Span(self.prompt(rows, index), False), Span(self.ended(self.answer(rows, index)), True)]

    def prompt(self, rows: Rows, index: int, kind: str = "prompt_completion") -> str:
        """What the model reads before it answers: all up to the last answer of the row."""
        if kind == "chat":
            messages = messages_of(rows, index)
            return self.opened(messages[: _last_answer(messages)])
        return self.wrap(self.plain(rows, index))

    def plain(self, rows: Rows, index: int) -> str:
        """The prompt of a row by itself, outside of any chat template."""
        return self._filled(rows, index, self.data.prompt or "{prompt}", "data.prompt")

    def answer(self, rows: Rows, index: int, kind: str = "prompt_completion") -> str:
        """What the model should answer, without what ends it."""
        if kind == "chat":
            messages = messages_of(rows, index)
            return messages[_last_answer(messages)]["content"] if messages[-1]["role"] == "assistant" else ""
        return self._filled(rows, index, self.data.completion or "{completion}", "data.completion")

    def question_format(self, rows: Rows) -> str:
        """`resolved_format` for rows that need no answers."""
        return "chat" if "messages" in rows.values[0] and self.data.prompt is None else "prompt_completion"

    def wrap(self, text: str) -> str:
        """One user message as the model reads it."""
        return self.conversation([{"role": "user", "content": text}])

    def conversation(self, messages: list[Message]) -> str:
        """Messages as the model reads them before its next answer; without a chat template only the last one."""
        if not self.chats:
            return messages[-1]["content"]
        head = [{"role": "system", "content": self.data.system}] if self.data.system is not None else []
        return self.opened([*head, *messages])

    def opened(self, messages: list[Message]) -> str:
        """Messages in the chat template, up to where the model's turn begins."""
        return self._render(messages, open_turn=True)

    def asked(self, text: str) -> str:
        """Free text put where the one column of the prompt template stands."""
        template = self.data.prompt or "{prompt}"
        names = columns_of(template, "data.prompt")
        return template.format(**{names[0]: text}) if len(names) == 1 else text

    def _filled(self, rows: Rows, index: int, template: str, key: str) -> str:
        names = columns_of(template, key)
        return template.format(**{name: _printable(rows, index, name) for name in names})

    def ended(self, answer: str) -> str:
        """The answer up to its end-of-sequence token, which is added where it is missing."""
        eos = str(self.tokenizer.eos_token or "")
        return answer[: answer.rindex(eos) + len(eos)] if eos and eos in answer else answer + eos

    def _render(self, messages: list[Message], open_turn: bool) -> str:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn)
        return str(text)

    def _turns(self, rows: Rows, index: int) -> list[Span]:
        messages = messages_of(rows, index)
        if not self.tokenizer.chat_template:
            raise DataError(
                "the tokenizer has no chat template for rows of messages",
                where=rows.where(index),
                fix="use a chat model, or rows with prompt and completion",
            )
        spans: list[Span] = []
        done = ""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = self.opened(messages[:i]), self._render(messages[: i + 1], open_turn=False)
            if not (before.startswith(done) and after.startswith(before)):
                raise DataError(
                    "the chat template rewrites earlier turns, so that they cannot be told apart",
                    where=rows.where(index),
                    fix="give one answer a row",
                )
            answer = self.ended(after[len(before) :])
            spans += [Span(before[len(done) :], False), Span(answer, True)]
            done = before + answer
        if not spans:
            raise DataError("no message has the role 'assistant'", where=rows.where(index))
        return spans


def _printable(rows: Rows, index: int, column: str) -> str:
    """A column as text; numbers are written out, anything else is refused."""
    value = rows.value(index, column)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return rows.text(index, column)


def _last_answer(messages: list[Message]) -> int:
    return max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=len(messages))


def messages_of(rows: Rows, index: int, column: str = "messages") -> list[Message]:
    """The messages in a column.

    Raises:
        DataError: it holds something else.
    """
    value: Any = rows.value(index, column)
    where = rows.where(index)
    if not isinstance(value, list) or not value:
        raise DataError(f"{column!r} is not a list of messages", where=where, got=type(value).__name__)
    roles = ("system", "user", "assistant", "tool")
    for message in value:
        ok = isinstance(message, dict) and all(isinstance(message.get(k), str) for k in ("role", "content"))
        if not ok:
            got = str(message)[:80]
            raise DataError("malformed message", where=where, got=got, expected='{"role": "user", "content": "..."}')
        if message["role"] not in roles:
            hint = did_you_mean(message["role"], roles)
            raise DataError("unknown role", where=where, got=message["role"], expected=", ".join(roles), fix=hint)
    return value
