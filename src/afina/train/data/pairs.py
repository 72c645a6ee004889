"""Preference pairs in the shapes that people have them, as prompt, chosen and rejected.

Text or lists of messages; a prompt of its own, or as the messages that both answers begin with; a prompt of text beside
answers that repeat it as their first messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import DataError
from .prompts import Message, Prompter, messages_of
from .rows import Rows

Piece = str | list[Message]


@dataclass(frozen=True)
class Pair:
    """One prompt, a better and a worse answer: all text, or all messages."""

    prompt: Piece
    chosen: Piece
    rejected: Piece

    def ids(self, prompter: Prompter, piece: Piece | None = None) -> list[int]:
        """Tokens of the prompt, or of prompt and answer `piece`."""
        tokenizer: Any = prompter.tokenizer
        if isinstance(self.prompt, str):
            assert piece is None or isinstance(piece, str)
            return list(tokenizer(self.prompt + (piece or ""))["input_ids"])
        assert not isinstance(piece, str)
        messages = [*self.prompt, *(piece or [])]
        options = {"add_generation_prompt": True} if piece is None else {}
        return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"])

    def answers(self, prompter: Prompter) -> tuple[list[int], list[int], list[int]]:
        """Tokens of the prompt, of the chosen and of the rejected answer; the prompt ends where both leave it."""
        prompt, chosen, rejected = (
            self.ids(prompter),
            self.ids(prompter, self.chosen),
            self.ids(prompter, self.rejected),
        )
        shared = min(_shared(prompt, chosen), _shared(prompt, rejected))
        return prompt[:shared], chosen[shared:], rejected[shared:]


def _shared(one: list[Any], other: list[Any]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def pair_of(prompter: Prompter, rows: Rows, index: int) -> Pair:
    """The pair of a row; text goes into the chat template where the recipe wants it.

    Raises:
        DataError: a column is missing, malformed or of another kind than the others, or both answers are the same.
    """
    chosen, rejected = rows.value(index, "chosen"), rows.value(index, "rejected")
    if isinstance(chosen, list) or isinstance(rejected, list) or isinstance(_prompt(rows, index), list):
        pair = _of_messages(prompter, rows, index)
    else:
        pair = _of_text(prompter, rows, index)
    if pair.chosen == pair.rejected:
        raise DataError("the chosen answer is the rejected one", where=rows.where(index), got=str(chosen)[:80])
    return pair


def prompt_text(prompter: Prompter, rows: Rows, index: int) -> str:
    """A row's prompt as the model reads it before it answers; the answers need not be there.

    Raises:
        DataError: there is no prompt.
    """
    if isinstance(_prompt(rows, index), list):
        return prompter.opened(_with_system(prompter, list(messages_of(rows, index, "prompt"))))
    if prompter.data.prompt is None and "prompt" not in rows.values[index] and "chosen" in rows.values[index]:
        prompt = pair_of(prompter, rows, index).prompt
        return prompt if isinstance(prompt, str) else prompter.opened(prompt)
    return prompter.prompt(rows, index)


def _prompt(rows: Rows, index: int) -> Any:
    return rows.values[index].get("prompt")


def _of_text(prompter: Prompter, rows: Rows, index: int) -> Pair:
    chosen, rejected = rows.text(index, "chosen"), rows.text(index, "rejected")
    given = prompter.data.prompt is not None or _prompt(rows, index) is not None
    prompt = prompter.plain(rows, index) if given else ""
    if prompter.chats and given:
        return Pair(_with_system(prompter, [_message("user", prompt)]), [_message("assistant", chosen)],
                    [_message("assistant", rejected)])  # fmt: skip
    return Pair(prompt, prompter.ended(chosen), prompter.ended(rejected))


def _of_messages(prompter: Prompter, rows: Rows, index: int) -> Pair:
    if not prompter.tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template for rows of messages", where=rows.where(index),
                        fix="use a chat model, or rows of text")  # fmt: skip
    chosen, rejected = _turns(rows, index, "chosen"), _turns(rows, index, "rejected")
    shared = _shared(chosen, rejected)
    head, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    given = _prompt(rows, index)
    before = messages_of(rows, index, "prompt") if isinstance(given, list) else []
    if isinstance(given, str) and not head:
        before = [_message("user", given)]
    return Pair(_with_system(prompter, [*before, *head]), chosen, rejected)


def _turns(rows: Rows, index: int, column: str) -> list[Message]:
    value = rows.value(index, column)
    return [_message("assistant", value)] if isinstance(value, str) else list(messages_of(rows, index, column))


def _with_system(prompter: Prompter, messages: list[Message]) -> list[Message]:
    system = prompter.data.system
    if system is None or (messages and messages[0]["role"] == "system"):
        return messages
    return [_message("system", system), *messages]


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": text}
