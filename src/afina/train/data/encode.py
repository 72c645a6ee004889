"""From rows to token ids and labels, with counts of what was cut, and two examples to look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from ...errors import DataError
from ..conversations.processor import Seen
from ..conversations.turns import Turn, shorter
from ..recipe.sections import DataSection
from ..report.events import Span
from .labels import label_of
from .prompts import Prompter
from .readers.row_check import HALF, lone_surrogate
from .rows import Rows
from .split import Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label that takes no part in the loss (torch's cross-entropy default)."""
_MAX_MASKED_SHARE = 0.01


@dataclass
class Encoded(Dataset[dict[str, Any]]):
    """Encoded rows, and what became of them.

    Attributes:
        items: what the task's collator takes: `input_ids` and `attention_mask` of length T and `labels`, or the token
            ids of a pair.
        truncated: rows cut to `max_length`.
        masked: rows dropped because no trained token was left.
        source: index of each item's row in the file's rows.
        rows: what was encoded.
    """

    items: list[dict[str, Any]] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    truncated: int = 0
    masked: int = 0
    rows: Rows | None = None

    def where(self, index: int) -> str:
        """`file:line` of an item's row."""
        return self.rows.where(self.source[index]) if self.rows is not None else f"row {self.source[index] + 1}"

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[self.at(index)]

    def at(self, index: int) -> int:
        """The place in `items` of what comes at `index` of an epoch."""
        return index

    def made_of(self, index: int) -> list[int]:
        """The file's rows that an item is made of."""
        return [self.source[index]]

    def by_length(self) -> Encoded:
        """The same items, longest first: batches with little padding."""
        order = sorted(range(len(self)), key=lambda i: -self.length(i))
        items, source = [self.items[i] for i in order], [self.source[i] for i in order]
        return Encoded(items, source, self.truncated, self.masked, self.rows)

    def length(self, index: int) -> int:
        """Tokens of an item, or samples of a sound."""
        item = self.items[index]
        ids = (item[key] for key in ("input_ids", "prompt_ids", "chosen_ids", "rejected_ids") if key in item)
        return int(item.get("samples", 0)) or sum(map(len, ids))

    def check_masked(self, rows: Rows, data: DataSection) -> None:
        """Refuse rows whose answers were cut away.

        Raises:
            DataError: none is left, or more than 1 % are lost and the recipe does not allow it.
        """
        where = rows.where(0) if len(rows) == 1 else str(rows.path)
        if not self.items and not self.masked:
            raise DataError("no answer to learn", where=where)
        if not self.items or (self.masked > _MAX_MASKED_SHARE * len(rows) and not data.allow_masked):
            kept = f"within data.max_length={data.max_length} tokens"
            more = ", or set data.allow_masked=true to drop them" if self.items else ""
            of = f"{made} sequences" if (made := len(self) + self.masked) > len(rows) else f"{len(rows)} rows"
            raise DataError(f"{self.masked} of {of} have no answer left {kept}", where=where,
                            fix=f"raise data.max_length{more}")  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Encoded rows of a run; `labels` is None where the rows have no fixed set of answers."""

    split: Split
    train: Encoded
    held_out: Encoded | None
    labels: list[str] | None

    @property
    def tasks(self) -> int:
        """How many tasks the rows are numbered for; 0 where they are not."""
        items = [*self.train.items, *(self.held_out.items if self.held_out is not None else ())]
        return 1 + max((int(item.get("task_ids", -1)) for item in items), default=-1)


def check_vocabulary(ids: list[int], where: str, vocab_size: int) -> None:
    """Refuse tokens that the model does not have.

    Raises:
        DataError: names the token and the row.
    """
    if max(ids, default=0) >= vocab_size:
        raise DataError(
            f"token {max(ids)} is outside the model's vocabulary", where=where, expected=f"less than {vocab_size}",
            fix="tokens were added to the tokenizer without resizing the model's embeddings",
        )  # fmt: skip


def encode_answers(rows: Rows, prompter: Prompter, vocab_size: int) -> Encoded:
    """Rows for a language model: the loss is taken on answers only, what ends them included.

    A prompt's tokens are those that inference sends. Several answers share a sequence only if each sees there what it
    will see then (`data.turns`).

    Raises:
        DataError: a row is malformed, a token is outside the model's vocabulary, or too many answers were cut off.
    """
    out = Encoded(rows=rows)
    for index in range(len(rows)):
        prompter.refuse_unwanted(rows, index)
        turns = prompter.turns(rows, index, prompter.resolved_format(rows, index))
        parts = [_part(prompter, turn) for turn in turns]
        if not parts:
            prompter.ledger.told["rows without an answer to learn, which are left out"] += 1
        for part in _sequences(parts, turns, prompter, rows.where(index)):
            check_vocabulary(part.ids, rows.where(index), vocab_size)
            _append(out, index, part, prompter.data.max_length)
    out.check_masked(rows, prompter.data)
    return out


@dataclass(frozen=True)
class _Part:
    """Tokens of a prompt and of its answer, and the labels of the answer; `seen` where the task has images."""

    prompt: list[int]
    answer: list[int]
    labels: list[int]
    seen: Seen | None = None

    @property
    def ids(self) -> list[int]:
        """All tokens."""
        return self.prompt + self.answer


def _part(prompter: Prompter, turn: Turn) -> _Part:
    seen = prompter.seen(turn.prompt, turn.talk)
    prompt = done = token_ids(prompter, turn.prompt, first=True) if seen is None else seen.ids
    text, labels = turn.prompt, list[int]()
    for span in turn.answer:
        text += span.text
        joint = token_ids(prompter, text, first=True) if seen is None else []
        # Tokens that straddle the edge are none that the model could write after this prompt.
        clean = bool(joint) and joint[: len(done)] == done
        piece = joint[len(done) :] if clean else token_ids(prompter, span.text, first=not done)
        done = done + piece
        labels += piece if span.trained else [IGNORED] * len(piece)
    return _Part(prompt, done[len(prompt) :], labels, seen)


def _sequences(parts: list[_Part], turns: list[Turn], prompter: Prompter, where: str) -> list[_Part]:
    """The sequences that a row makes.

    Raises:
        DataError: all answers are wanted in one, and the chat template writes earlier ones otherwise.
    """
    wanted = prompter.data.turns
    if wanted == "last":
        parts, turns = parts[-1:], turns[-1:]
    elif wanted != "each" and len(parts) > 1:
        whole = _joined(parts)
        if whole is None and wanted == "all":
            raise DataError("the chat template writes earlier turns otherwise than they were answered", where=where,
                            fix="data.turns=each: every answer in a sequence of its own")  # fmt: skip
        if whole is not None:
            prompter.ledger.told["conversations with all answers in one sequence (data.turns)"] += 1
            lost = sum(len(part.prompt) >= prompter.data.max_length for part in parts)
            if lost:
                prompter.ledger.told["answers beyond data.max_length in their conversation, which are not learnt "
                                     "(data.turns=each learns them)"] += lost  # fmt: skip
            return [whole]
        prompter.ledger.told["conversations with a sequence for each answer, because the chat template writes earlier "
                             "turns otherwise than they were answered (data.turns)"] += 1  # fmt: skip
    return [_fitting(prompter, part, turn) for part, turn in zip(parts, turns, strict=True)]


def _fitting(prompter: Prompter, part: _Part, turn: Turn) -> _Part:
    """An answer with as many of the latest exchanges before it as `data.max_length` has room for, where it fits with
    one at all."""
    whole, left = part, turn
    while len(part.prompt) + len(part.answer) > prompter.data.max_length:
        found = shorter(prompter.template, left)
        if found is None:  # it is cut, or dropped and counted
            return whole
        part, left = _part(prompter, found), found
    if part is not whole:
        prompter.ledger.told["answers learnt without the oldest exchanges before them, for which data.max_length has "
                             "no room"] += 1  # fmt: skip
    return part


def _joined(parts: list[_Part]) -> _Part | None:
    """All answers in one sequence; None where one would not see there what it sees at inference."""
    ids, labels = list[int](), list[int]()
    for part in parts:
        if part.prompt[: len(ids)] != ids:
            return None
        labels += [IGNORED] * (len(part.prompt) - len(ids)) + part.labels
        ids = part.ids
    return _Part([], ids, labels, parts[-1].seen)


def _append(out: Encoded, index: int, part: _Part, max_length: int) -> None:
    out.truncated += len(part.ids) > max_length
    ids, labels = part.ids[:max_length], ([IGNORED] * len(part.prompt) + part.labels)[:max_length]
    # The first token is never predicted, so a label there is no training signal.
    if all(label == IGNORED for label in labels[1:]):
        out.masked += 1
        return
    item = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
    out.items.append(item if part.seen is None else {**item, "seen": part.seen})
    out.source.append(index)


def token_ids(prompter: Prompter, text: str, first: bool) -> list[int]:
    """Tokens of a piece of text; the first piece gets the tokenizer's own start token, if a template gave none.

    Raises:
        DataError: the text is none (a lone surrogate).
    """
    if (half := lone_surrogate(text)) is not None:
        raise DataError(HALF, got=ascii(half)[1:-1])
    tokenizer = prompter.tokenizer
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not first or (prompter.chats and ids):
        return ids
    special = tokenizer("", add_special_tokens=True)["input_ids"]
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None and tokenizer.bos_token_id in special else []
    return start + ids if ids[: len(start)] != start else ids


def encoder_ids(prompter: Prompter, text: str) -> list[int]:
    """Tokens of a prompt for an encoder; a chat template has already put around it what belongs there."""
    return list(prompter.tokenizer(text, add_special_tokens=not prompter.chats)["input_ids"])


def cut_prompt(ids: list[int], limit: int) -> list[int]:
    """An encoder's prompt of at most `limit` tokens, with the token that ends it."""
    return ids if len(ids) <= limit else ids[: limit - 1] + ids[-1:]


def encode_classes(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, data: DataSection, labels: list[str], *, labelled: bool = True
) -> Encoded:
    """Rows for a classifier: tokens of the text, and the label's position.

    Raises:
        DataError: a row lacks text or has an unknown label.
    """
    out = Encoded(rows=rows)
    for index in range(len(rows)):
        text = rows.text(index, data.text_column)
        ids = tokenizer(text)["input_ids"]
        if len(ids) > data.max_length:
            out.truncated += 1
            ids = tokenizer(text, truncation=True, max_length=data.max_length)["input_ids"]
        item: dict[str, Any] = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if labelled:
            item["labels"] = labels.index(label_of(rows, index, data.label_column, labels))
        out.items.append(item)
        out.source.append(index)
    return out


def rendered_answers(item: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    """An encoded item as text, cut where the loss begins and ends: what the model really gets."""
    ids, targets = item["input_ids"], item["labels"]
    spans: list[Span] = []
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or (targets[i] == IGNORED) != (targets[start] == IGNORED):
            spans.append(Span(str(tokenizer.decode(ids[start:i])), targets[start] != IGNORED))
            start = i
    return spans
