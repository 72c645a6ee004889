"""Questions with a passage that answers them (the rows of SQuAD): where an answer stands, and how near another one is
to it by SQuAD's own rules (Rajpurkar et al. 2016, arXiv 1606.05250)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ....errors import DataError, RecipeError
from ..rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST_OVERLAP = 128


@dataclass(frozen=True)
class Question:
    """A question, its passage, and the answers as (first character, text); none where the passage has no answer."""

    question: str
    context: str
    answers: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Window:
    """The question with a part of its passage.

    Attributes:
        ids: tokens of both.
        types: which of the two texts a token is of, for models that are told; None where they are not.
        offsets: token -> its first character in the passage and the one after its last, None outside of the passage.
    """

    ids: list[int]
    types: list[int] | None
    offsets: list[tuple[int, int] | None]

    def positions(self, start: int, text: str) -> tuple[int, int] | None:
        """First and last token of an answer; None where the window does not hold all of it."""
        inside = [(i, o) for i, o in enumerate(self.offsets) if o is not None and o[0] < o[1]]
        if not inside or inside[0][1][0] > start or inside[-1][1][1] < start + len(text):
            return None
        held = [i for i, (first, after) in inside if first < start + len(text) and after > start]
        return (held[0], held[-1]) if held else None


def question_of(rows: Rows, index: int, *, answered: bool = True) -> Question:
    """The question of a row: `question`, `context` and `answers` as SQuAD has them, or one `answer` of text.

    Args:
        answered: whether the row must have answers; an empty list of them says that there is none.

    Raises:
        DataError: a column is missing or malformed, or an answer does not stand in the passage.
    """
    question, context = rows.text(index, "question"), rows.text(index, "context")
    row = rows.values[index]
    if not answered and not {"answers", "answer"} & set(row):
        return Question(question, context)
    given = [(row.get("answer_start"), rows.text(index, "answer"))] if "answers" not in row else _given(rows, index)
    return Question(question, context, tuple(_placed(rows, index, context, *one) for one in given if one[1]))


def _given(rows: Rows, index: int) -> list[tuple[Any, str]]:
    value, where = rows.value(index, "answers"), rows.where(index)
    if isinstance(value, dict):
        texts = value.get("text", [])
        value = [{"text": t, "answer_start": s} for t, s in zip(texts, value.get("answer_start", [None] * len(texts)))]  # noqa: B905
    if not isinstance(value, list) or not all(isinstance(v, dict) and isinstance(v.get("text"), str) for v in value):
        raise DataError("malformed answers", where=where, got=str(value)[:80],
                        expected='{"text": ["..."], "answer_start": [0]}')  # fmt: skip
    return [(v.get("answer_start"), v["text"]) for v in value]


def _placed(rows: Rows, index: int, context: str, start: Any, text: str) -> tuple[int, str]:
    found = context.find(text) if start is None else start
    if not isinstance(found, int) or found < 0 or context[found : found + len(text)] != text:
        raise DataError("an answer does not stand in the context", where=rows.where(index), got=repr(text)[:80],
                        fix="answers are copied from the context, and answer_start counts characters")  # fmt: skip
    return found, text


def windows(tokenizer: PreTrainedTokenizerBase, question: Question, max_length: int) -> list[Window]:
    """The question with every part of the passage that fits behind it; parts overlap by a quarter of `max_length`.

    Raises:
        RecipeError: the question leaves no room, or the tokenizer cannot tell where its tokens stand.
    """
    if not tokenizer.is_fast:
        raise RecipeError("this tokenizer cannot tell where its tokens stand in the text", where="model.path",
                          got=type(tokenizer).__name__, expected="a fast tokenizer")  # fmt: skip
    room = max_length - len(tokenizer(question.question, "")["input_ids"])
    if room < 2:
        raise RecipeError("a question leaves no room for its context", where="data.max_length", got=max_length,
                          fix="raise it")  # fmt: skip
    found = tokenizer(
        question.question, question.context, truncation="only_second", max_length=max_length,
        stride=min(_LONGEST_OVERLAP, max_length // 4, room - 1), return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )  # fmt: skip
    out = []
    for i, ids in enumerate(found["input_ids"]):
        parts = found.sequence_ids(i)
        offsets = [o if part == 1 else None for o, part in zip(found["offset_mapping"][i], parts, strict=True)]
        types = list(found["token_type_ids"][i]) if "token_type_ids" in found else None
        out.append(Window(list(ids), types, offsets))
    return out


def normalised(answer: str) -> str:
    """In lower case, without punctuation and articles, with single blanks."""
    text = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, gold: Sequence[str]) -> float:
    """1 where the answer is one of the right ones up to `normalised`, else 0; an empty one where there is none."""
    return float(any(normalised(answer) == normalised(one) for one in gold or [""]))


def token_f1(answer: str, gold: Sequence[str]) -> float:
    """The F1 over words with the nearest of the right answers."""
    return max(_f1(normalised(answer).split(), normalised(one).split()) for one in gold or [""])


def _f1(got: list[str], expected: list[str]) -> float:
    if not got or not expected:
        return float(got == expected)
    shared = sum((Counter(got) & Counter(expected)).values())
    return 2 * shared / (len(got) + len(expected))
