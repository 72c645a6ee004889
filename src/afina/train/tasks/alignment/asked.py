"""The prompt of a row as TRL takes it: text, or messages where the tokenizer chats."""

from __future__ import annotations

from ...data.pairs import Piece
from ...data.prompts import Message, Prompter, messages_of
from ...data.rows import Rows


def question(prompter: Prompter, rows: Rows, index: int) -> Piece:
    """All that comes before the answer: of messages, up to the last answer.

    Raises:
        DataError: a column is missing or malformed.
    """
    row = rows.values[index]
    if "messages" in row and prompter.data.prompt is None:
        messages = list(messages_of(rows, index))
        return with_system(prompter, messages[:-1] if messages[-1]["role"] == "assistant" else messages)
    if isinstance(row.get("prompt"), list) and prompter.data.prompt is None:
        return with_system(prompter, list(messages_of(rows, index, "prompt")))
    prompt = prompter.plain(rows, index)
    return with_system(prompter, [message("user", prompt)]) if prompter.chats else prompt


def with_system(prompter: Prompter, messages: list[Message]) -> list[Message]:
    """The messages, after the recipe's system message unless they begin with one."""
    system = prompter.data.system
    if system is None or (messages and messages[0]["role"] == "system"):
        return messages
    return [message("system", system), *messages]


def message(role: str, text: str) -> Message:
    """A message of text."""
    return {"role": role, "content": text}
