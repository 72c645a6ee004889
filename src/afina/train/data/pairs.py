"""Preference pairs in the shapes that people have them, as prompt, chosen and rejected.

Text or lists of messages; a prompt of its own, or as the messages that both answers begin with; a prompt of text beside
answers that repeat it as their first messages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...errors import DataError
from ..conversations.chat_template import shared_length
from ..conversations.messages import ASSISTANT, Message
from ..conversations.turns import Conversation, turns_of
from .encode import token_ids
from .prompts import Prompter
from .rows import Rows

Piece = str | list[Message]


@dataclass(frozen=True)
class Pair:
    """One prompt, a better and a worse answer: all text, or all messages; `talk` is what the template is given."""

    prompt: Piece
    chosen: Piece
    rejected: Piece
    talk: Conversation | None = None

    def text(self, prompter: Prompter, piece: Piece | None = None) -> str:
        """The prompt as the model reads it, or prompt and answer `piece` up to the token that ends it.

        Raises:
            DataError: the chat template refuses the messages, or an answer is empty.
        """
        if self.talk is None:
            assert isinstance(self.prompt, str)
            assert piece is None or isinstance(piece, str)
            return self.prompt + (piece or "")
        if piece is None:
            return self.talk.opened(prompter.template)
        assert isinstance(piece, list)
        # It is this answer that counts, whatever the row says of learning it.
        before = [{**m, "train": False} for m in self.talk.messages]
        answer = [{k: v for k, v in m.items() if k != "train"} for m in piece]
        whole = replace(self.talk, messages=[*before, *answer])
        turns = turns_of(prompter.template, whole, prompter.ledger)
        if not turns or whole.messages[-1]["role"] != ASSISTANT:
            raise DataError("a pair has an answer that says nothing", where=whole.where, got=str(piece))
        return turns[-1].prompt + "".join(span.text for span in turns[-1].answer)

    def ids(self, prompter: Prompter, piece: Piece | None = None) -> list[int]:
        """Tokens of the prompt, or of prompt and answer `piece`."""
        return token_ids(prompter, self.text(prompter, piece), first=True)

    def scored_ids(self, prompter: Prompter, piece: Piece) -> list[int]:
        """Tokens of prompt and answer as a reward model reads them: a conversation to its very end."""
        if self.talk is None:
            return self.ids(prompter, piece)
        assert isinstance(piece, list)
        whole = replace(self.talk, messages=[*self.talk.messages, *piece])
        return token_ids(prompter, whole.closed(prompter.template), first=True)

    def answers(self, prompter: Prompter) -> tuple[list[int], list[int], list[int]]:
        """Tokens of the prompt, of the chosen and of the rejected answer; the prompt ends where both leave it."""
        prompt, chosen, rejected = (
            self.ids(prompter),
            self.ids(prompter, self.chosen),
            self.ids(prompter, self.rejected),
        )
        shared = min(shared_length(prompt, chosen), shared_length(prompt, rejected))
        return prompt[:shared], chosen[shared:], rejected[shared:]


def pair_of(prompter: Prompter, rows: Rows, index: int) -> Pair:
    """The pair of a row; text goes into the chat template where the recipe wants it.

    Raises:
        DataError: a column is missing, malformed or of another kind than the others, or both answers are the same.
    """
    chosen, rejected = rows.value(index, "chosen"), rows.value(index, "rejected")
    if any(isinstance(value, (list, dict)) for value in (chosen, rejected, _prompt(rows, index))):
        pair = _of_messages(prompter, rows, index)
    else:
        pair = _of_text(prompter, rows, index)
    if pair.chosen == pair.rejected:
        raise DataError("the chosen answer is the rejected one", where=rows.where(index), got=str(chosen)[:80])
    return pair


def answered(prompter: Prompter, rows: Rows, index: int) -> Pair:
    """A row's prompt, and its one answer in both places of a pair.

    Raises:
        DataError: a column is missing or malformed, or the last message is no answer.
    """
    whole = "messages" in rows.values[index] and prompter.data.prompt is None
    talk = prompter.talk(rows, index, "chat" if whole else "prompt_completion", answered=True)
    if talk is None:
        text = prompter.ended(prompter.answer(rows, index))
        return Pair(prompter.plain(rows, index), text, text)
    if talk.messages[-1]["role"] != ASSISTANT:
        raise DataError("the last message is no answer", where=rows.where(index), got=talk.messages[-1]["role"])
    answer = talk.messages[-1:]
    return Pair(talk.asked.messages, answer, answer, talk.asked)


def prompt_text(prompter: Prompter, rows: Rows, index: int) -> str:
    """A row's prompt as the model reads it before it answers; the answers need not be there.

    Raises:
        DataError: there is no prompt.
    """
    given = _prompt(rows, index)
    if isinstance(given, list):
        messages = prompter.messages(rows, index, "prompt" if "prompt" in rows.values[index] else "messages")
        return prompter.with_extras(rows, index, messages).opened(prompter.template)
    if prompter.data.prompt is None and given is None and "chosen" in rows.values[index]:
        return pair_of(prompter, rows, index).text(prompter)
    return prompter.prompt(rows, index)


def _prompt(rows: Rows, index: int) -> Any:
    """The prompt; in its place the messages that stand before both answers."""
    given = rows.get(index, "prompt")
    return rows.get(index, "messages") if given is None else given


def _of_text(prompter: Prompter, rows: Rows, index: int) -> Pair:
    chosen, rejected = rows.text(index, "chosen"), rows.text(index, "rejected")
    given = prompter.data.prompt is not None or _prompt(rows, index) is not None
    prompt = prompter.plain(rows, index) if given else ""
    if prompter.chats and given:
        talk = prompter.with_extras(rows, index, [_says("user", prompt)])
        return Pair(talk.messages, [_says(ASSISTANT, chosen)], [_says(ASSISTANT, rejected)], talk)
    return Pair(prompt, prompter.ended(chosen), prompter.ended(rejected))


def _of_messages(prompter: Prompter, rows: Rows, index: int) -> Pair:
    chosen, rejected = _turns(prompter, rows, index, "chosen"), _turns(prompter, rows, index, "rejected")
    shared = shared_length(chosen, rejected)
    head, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    given, before = _prompt(rows, index), list[Message]()
    if isinstance(given, list):
        before = prompter.messages(rows, index, "prompt" if rows.get(index, "prompt") is not None else "messages")
    if isinstance(given, str) and not head:
        before = [_says("user", given)]
    talk = prompter.with_extras(rows, index, [*before, *head])
    return Pair(talk.messages, chosen, rejected, talk)


def _turns(prompter: Prompter, rows: Rows, index: int, column: str) -> list[Message]:
    value = rows.value(index, column)
    return [_says(ASSISTANT, value)] if isinstance(value, str) else prompter.messages(rows, index, column)


def _says(role: str, text: str) -> Message:
    return {"role": role, "content": text}
