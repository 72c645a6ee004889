"""From rows to conversations and texts: what the model reads, and what it has to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from ..conversations.channels import WORDS, shown, without_thoughts
from ..conversations.chat_template import ChatTemplate, ids_of
from ..conversations.image_files import with_images
from ..conversations.images import images_of
from ..conversations.ledger import Ledger
from ..conversations.messages import ASSISTANT, Message, history_of, message_of, normalised, tools_of
from ..conversations.processor import Images, Seen
from ..conversations.turns import Conversation, Turn, turns_of
from ..recipe.sections import DataSection
from ..report.events import Span
from .columns import columns_of
from .rows import Rows
from .standard import how_to_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompter:
    """Renders rows and free text for one tokenizer and one data section.

    Attributes:
        images: what reads images, where the task has some.
        ledger: what became of the rows that were rendered for training.
    """

    data: DataSection
    tokenizer: PreTrainedTokenizerBase
    images: Images | None = field(default=None, compare=False, repr=False)
    ledger: Ledger = field(default_factory=Ledger, compare=False, repr=False)

    @cached_property
    def template(self) -> ChatTemplate:
        """The tokenizer's chat template."""
        return ChatTemplate(self.tokenizer)

    @property
    def chats(self) -> bool:
        """Whether prompts go into the tokenizer's chat template."""
        return self.data.chat_template and bool(getattr(self.tokenizer, "chat_template", None))

    def resolved_format(self, rows: Rows, index: int = 0) -> str:
        """The format of a row: as the recipe says, else by the columns of the first row of its data set.

        Raises:
            DataError: no format fits the columns.
        """
        if self.data.format != "auto":
            return self.data.format
        first = rows.first_of(index)
        columns = rows.values[first]
        if "messages" in columns and self.data.prompt is None:
            return "chat"
        if self.data.prompt is not None or {"prompt", "completion"} <= set(columns):
            return "prompt_completion"
        raise DataError(
            "cannot tell prompt from answer",
            where=rows.where(first),
            got=f"columns {', '.join(map(repr, columns))}",
            fix=how_to_answer(columns, self.data.text_column, self.data.label_column),
        )

    def question_format(self, rows: Rows, index: int = 0) -> str:
        """`resolved_format` for rows that need no answers."""
        first = rows.values[rows.first_of(index)]
        return "chat" if "messages" in first and self.data.prompt is None else "prompt_completion"

    def turns(self, rows: Rows, index: int, kind: str) -> list[Turn]:
        """The answers of a row that are to be learnt, each with what the model reads before it.

        Raises:
            DataError: a column is missing or not text, messages are malformed, or the chat template refuses them.
        """
        talk = self.talk(rows, index, kind, answered=True)
        if talk is not None:
            if kind == "chat" and not any(m["role"] == ASSISTANT for m in talk.messages):
                raise DataError("no message has the role 'assistant'", where=talk.where)
            return turns_of(self.template, talk, self.ledger)
        prompt, answer = self.plain(rows, index), self.answer(rows, index)
        if not answer.strip():
            self.ledger.told["empty answers, which are not learnt"] += 1
            return []
        if prompt[-1:].strip() and answer[:1].strip():
            self.ledger.told[
                "answers that follow their prompt without a blank between (data.prompt can end in one)"
            ] += 1
        return [Turn(prompt, [Span(self.ended(answer), True)])]

    def prompt(self, rows: Rows, index: int, kind: str = "prompt_completion") -> str:
        """What the model reads before it answers: all of a row but for the answer that it may end in."""
        talk = self.talk(rows, index, kind, answered=False)
        return self.plain(rows, index) if talk is None else talk.asked.opened(self.template)

    def whole(self, rows: Rows, index: int, kind: str) -> str:
        """A row with its answer, to its very end."""
        talk = self.talk(rows, index, kind, answered=True)
        if talk is not None:
            return talk.closed(self.template)
        return self.plain(rows, index) + self.ended(self.answer(rows, index))

    def plain(self, rows: Rows, index: int) -> str:
        """The prompt of a row by itself, outside of any chat template."""
        return self._filled(rows, index, self.data.prompt or "{prompt}", "data.prompt")

    def answer(self, rows: Rows, index: int, kind: str = "prompt_completion") -> str:
        """What the model should answer, without what ends it."""
        given = None if kind == "chat" or self.data.completion is not None else rows.get(index, "completion")
        if kind == "chat" or isinstance(given, (list, dict)):
            messages = self.messages(rows, index, "messages" if kind == "chat" else "completion")
            return str(messages[-1]["content"]) if messages[-1]["role"] == ASSISTANT else ""
        return self._filled(rows, index, self.data.completion or "{completion}", "data.completion")

    def messages(self, rows: Rows, index: int, column: str) -> list[Message]:
        """The messages in a column, which may be one by itself.

        Raises:
            DataError: it holds something else, or there is no chat template to write them with.
        """
        where, value = rows.where(index), rows.value(index, column)
        out = [message_of(value, where)] if isinstance(value, dict) else normalised(value, where, column)
        if not self.tokenizer.chat_template:
            raise DataError("the tokenizer has no chat template for rows of messages", where=where,
                            fix="use a chat model, or rows with prompt and completion")  # fmt: skip
        return out

    def with_extras(self, rows: Rows, index: int, messages: list[Message]) -> Conversation:
        """Messages with what else the row gives the template: a system message, tools, options of its own.

        Raises:
            DataError: one of them is malformed.
        """
        where = rows.where(index)
        tools = tools_of(rows.get(index, "tools"), where)
        options = rows.get(index, "chat_template_kwargs") or {}
        if not isinstance(options, dict):
            raise DataError("'chat_template_kwargs' is no object", where=where, got=type(options).__name__)
        options = {k: v for k, v in options.items() if v is not None}
        messages = self._shown(rows, index, messages)
        return Conversation(self.led(messages, self._system(rows, index)), where, tools, options)

    def _shown(self, rows: Rows, index: int, messages: list[Message]) -> list[Message]:
        """Messages with the row's images.

        Raises:
            DataError: an image is not there, there are not as many as places, or the task has none.
        """
        if self.images is None:
            if images_of(messages):
                raise DataError("a message has an image", where=rows.where(index), expected="text alone, for this task",
                                fix="task=image_text_to_text learns them; or leave such rows out")  # fmt: skip
            return messages
        column = rows.get(index, "images") or rows.get(index, "image")
        return with_images(messages, column, rows.folder(index), rows.where(index))

    def seen(self, text: str, talk: Conversation | None) -> Seen | None:
        """A rendered prompt with the images of its messages; None where the task has none.

        Raises:
            DataError: an image cannot be read, or the chat template has no place for it.
        """
        if self.images is None:
            return None
        return self.images.seen(text, images_of(talk.messages) if talk is not None else (), talk.where if talk else "")

    def looked(self, batch: Sequence[Seen], inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the model takes of the images of prompts, whose tokens are padded on the left in `inputs`."""
        assert self.images is not None
        ids = inputs["input_ids"]
        return {k: v.to(ids.device) for k, v in self.images.inputs(batch, ids.shape[1], left=True).items()}

    def keep(self, folder: Path) -> None:
        """Write what turns texts, and images, into what the model takes."""
        if self.images is not None:
            self.images.keep(folder)
        else:
            self.tokenizer.save_pretrained(folder)

    def led(self, messages: list[Message], system: str | None = None) -> list[Message]:
        """Messages behind a system message, of the row or of the recipe, unless they have their own."""
        system = system or self.data.system
        if system is None or (messages and messages[0]["role"] in ("system", "developer")):
            return messages
        return [_says("system", system), *messages]

    def wrap(self, text: str) -> str:
        """One user message as the model reads it."""
        return self.conversation([_says("user", text)])

    def conversation(self, messages: list[Message]) -> str:
        """Messages as the model reads them before its next answer; without a chat template only the last one."""
        return self.opened(self.led(messages)) if self.chats else str(messages[-1]["content"])

    def opened(self, messages: list[Message]) -> str:
        """Messages in the chat template, up to where the model's turn begins."""
        return self.template.render(messages, open_turn=True)

    def asked(self, text: str) -> str:
        """Free text put where the one column of the prompt template stands."""
        template = self.data.prompt or "{prompt}"
        names = columns_of(template, "data.prompt")
        return template.format(**{names[0]: text}) if len(names) == 1 else text

    def ended(self, answer: str) -> str:
        """An answer outside of any chat template up to its end-of-sequence token, added where it is missing."""
        eos = str(self.tokenizer.eos_token or "")
        return answer[: answer.rindex(eos) + len(eos)] if eos and eos in answer else answer + eos

    @cached_property
    def channelled(self) -> bool:
        """Whether answers are written in channels."""
        return self.chats and len(ids_of(self.tokenizer, WORDS)) == len(WORDS) and self.template.reads("channel")

    def decoded(self, ids: Any) -> str:
        """What the tokens of an answer say to people."""
        if self.channelled:
            return shown(str(self.tokenizer.decode(ids)), map(str, self.tokenizer.all_special_tokens))
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def remembered(self, answer: str) -> str:
        """What was shown, as the chat template takes it back in the turns that follow."""
        return without_thoughts(answer) if self.channelled else answer

    def said(self, text: str) -> str:
        """A decoded answer by itself: no outer blanks, and no end of turn that the tokenizer has no token for."""
        if self.chats and not self.template.ending.own:
            written = self.template.ending.text.removesuffix("".join(self.template.ending.tokens)).strip()
            text = text.strip().removesuffix(written)
        return text.strip()

    def talk(self, rows: Rows, index: int, kind: str, *, answered: bool) -> Conversation | None:
        """A row as messages; None where it is text that goes into no chat template."""
        if kind == "chat":
            return self.with_extras(rows, index, self.messages(rows, index, "messages"))
        head = self._side(rows, index, "prompt", "user")
        if head is None:
            return None
        messages = [*history_of(rows.get(index, "history"), rows.where(index)), *({**m, "train": False} for m in head)]
        if answered:
            messages += self._side(rows, index, "completion", ASSISTANT) or [_says(ASSISTANT, self.answer(rows, index))]
        return self.with_extras(rows, index, messages)

    def _side(self, rows: Rows, index: int, column: str, role: str) -> list[Message] | None:
        """The prompt or the completion as messages; None where it is text outside of a chat template."""
        template = self.data.prompt if column == "prompt" else self.data.completion
        if template is None and isinstance(rows.get(index, column), (list, dict)):
            return self.messages(rows, index, column)
        if not self.chats:
            return None
        return [_says(role, self.plain(rows, index) if column == "prompt" else self.answer(rows, index))]

    def _system(self, rows: Rows, index: int) -> str | None:
        """The row's own system message, unless a template of the recipe has put it elsewhere."""
        if any("system" in columns_of(t, "data.prompt") for t in (self.data.prompt, self.data.completion) if t):
            return None
        value = rows.get(index, "system")
        if value is not None and not isinstance(value, str):
            raise DataError("column 'system' is not text", where=rows.where(index), got=type(value).__name__)
        return value or None

    def refuse_unwanted(self, rows: Rows, index: int) -> None:
        """Answers that the data calls bad (`label: false`) are no examples for tasks that learn every answer.

        Raises:
            DataError: this is one.
        """
        named = [n for t in (self.data.prompt, self.data.completion) if t for n in columns_of(t, "data.prompt")]
        column = self.data.label_column
        if column not in named and rows.values[index].get(column) is False:
            raise DataError("the answer is called bad, but this task learns every answer", where=rows.where(index),
                            got=f"{column}: false",
                            fix="task=kto learns from both kinds, or leave such rows out")  # fmt: skip

    def _filled(self, rows: Rows, index: int, template: str, key: str) -> str:
        names = columns_of(template, key)
        return template.format(**{name: _printable(rows, index, name) for name in names})


def _says(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def _printable(rows: Rows, index: int, column: str) -> str:
    """A column as text; numbers are written out, anything else is refused."""
    value = rows.value(index, column)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return rows.text(index, column)
