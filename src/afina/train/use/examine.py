"""What a data file holds, before anything is trained on it."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ...errors import DataError
from ..conversations.images import image_in
from ..data.encode import IGNORED
from ..data.formats import recognise
from ..data.prompts import Prompter
from ..data.readers.row_check import Row
from ..data.rows import Rows
from ..data.standard import how_to_answer, mapping, nearly
from ..recipe.sections import DataSection
from ..report.events import Span
from ..tasks import Task, named
from ..tasks.causal_lm import CausalLM
from ..tasks.image_text_to_text import ImageTextToText
from ..tasks.pretraining import Pretraining
from ..tasks.seq2seq import Seq2Seq
from .look_files import Files, look_into

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_TASK_OF = MappingProxyType(
    {"preference": "preference", "judged": "kto", "labelled": "sequence_classification",
     "tagged": "token_classification", "asked": "extractive_qa", "near": "embeddings",
     "pictured": "image_classification", "captioned": "text_to_image", "spoken": "speech_recognition",
     "sounding": "audio_classification"}
)  # fmt: skip
"""What rows of a shape are mostly for; all others are for a language model."""
_SHOWN = 2
"""Examples that are rendered unasked."""


class Token(NamedTuple):
    """A token of an example, and whether the loss is taken on it."""

    id: int
    text: str
    trained: bool


@dataclass
class Findings:
    """What was found in a file.

    Attributes:
        rows: how many; `shape`: as `formats.recognise` names it; `task`: what they were checked for.
        columns: column -> (how many rows have it, its type).
        lengths: column of text -> (median, 95th percentile, longest) in words, or `tokens` for whole examples.
        labels: label -> rows, where there is a label column. `classes`: as the model would have them, where it would.
        duplicates: rows that are there more than once. `empty`: "file:line" of rows with an empty text.
        problems: what training would refuse: what is wrong -> each time told with file and line.
        notes: what training would take otherwise than it stands.
        usable: rows that can be trained on; None where that was not looked at, for want of a tokenizer.
        examples: row -> itself rendered, with what the loss is taken on.
        masks: row -> its tokens, where the loss is taken on tokens.
        files: what a sample of the images or sounds is, where rows have some.
    """

    rows: int
    shape: str
    task: str
    columns: dict[str, tuple[int, str]]
    lengths: dict[str, tuple[int, int, int]]
    labels: dict[str, int] = field(default_factory=dict)
    classes: list[str] | None = None
    duplicates: int = 0
    empty: list[str] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    usable: int | None = None
    examples: dict[int, list[Span]] = field(default_factory=dict)
    masks: dict[int, list[Token]] = field(default_factory=dict)
    files: Files | None = None

    def problem(self, error: DataError, where: str) -> None:
        """Remember what was wrong with a row."""
        told = str(error).replace("\n", "; ")
        self.problems.setdefault(error.what, []).append(told if where in told else f"{where}: {told}")


def examine(
    rows: Rows, data: DataSection, tokenizer: PreTrainedTokenizerBase | None = None, task: str | None = None,
    shown: Sequence[int] = (),
) -> Findings:  # fmt: skip
    """Count, measure and check every row, for the task that the columns speak for unless another is named.

    Args:
        shown: which rows are rendered as examples; without it the first two that can be used.

    Raises:
        DataError: a row has not the shape of the first.
        RecipeError: no such task.
    """
    shaped, shape = recognise(rows)
    fitting = fitting_task(rows, data, task)
    counts = Counter(c for row in rows.values for c in row)
    kinds = {c: next(type(r[c]).__name__ for r in rows.values if c in r) for c in counts}
    found = Findings(len(rows), shape, fitting.name, {c: (n, kinds[c]) for c, n in counts.items()}, {})
    names = {"images": "image", "sounds": "audio"}.get(fitting.medium)  # of files, which are no texts
    for column in (c for c, kind in kinds.items() if kind == "str" and c != names):
        texts = [r[column] for r in rows.values if isinstance(r.get(column), str)]
        found.lengths[column] = _spread([len(t.split()) for t in texts])
        found.empty += [rows.where(i) for i, r in enumerate(rows.values) if r.get(column) == ""][:5]
    if data.label_column in counts:
        found.labels = dict(Counter(str(r.get(data.label_column)) for r in rows.values).most_common(30))
    seen = Counter(json.dumps(r, sort_keys=True, default=str) for r in rows.values)
    found.duplicates = sum(n - 1 for n in seen.values())
    if fitting.name == "token_classification":
        found.labels = dict(Counter(str(t) for r in shaped.values for t in r.get("tags") or ()).most_common(30))
    # With a model, every file is read below, and what is wrong with it told there.
    found.files = look_into(shaped, fitting, found.problem if tokenizer is None else lambda error, where: None)
    if tokenizer is not None:
        _encode(shaped, data, tokenizer, fitting, found, shown)
    else:
        _without_tokens(shaped, data, fitting, found)
    found.notes += _gaps(rows) + _hints(rows, data, task, fitting, found)
    return found


def fitting_task(rows: Rows, data: DataSection, task: str | None = None) -> Task:
    """The task that rows are looked at for: the one named, or that which their columns speak for.

    Raises:
        DataError: a row has not the shape of the first.
        RecipeError: no such task.
    """
    shape = recognise(rows)[1]
    return named(task or (CausalLM.name if data.prompt is not None else _task_of(shape, rows, data)))


def _task_of(shape: str, rows: Rows, data: DataSection) -> str:
    """What rows of a shape are mostly for."""
    columns = rows.values[0]
    if shape == "columns" and data.text_column in columns and data.label_column not in columns:
        return Pretraining.name
    if shape in ("chat", "sharegpt", "prompt_completion", "alpaca") and _has_images(columns):
        return ImageTextToText.name
    return _TASK_OF.get(shape, CausalLM.name)


def _has_images(row: Row) -> bool:
    """Whether a row has images in a column, or among the parts of its messages."""
    messages = row.get("messages")
    contents = [m.get("content") for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return bool(row.get("images") or row.get("image")) or any(image_in(part)[0] for part in parts)


def _gaps(rows: Rows) -> list[str]:
    """Columns that some rows have a value in and others not."""
    seen = dict.fromkeys(c for row in rows.values for c in row)
    without = {c: [i for i, row in enumerate(rows.values) if row.get(c) is None] for c in seen}
    return [f"column {c!r}: missing or null in {len(i)} rows, first {rows.where(i[0])}"
            for c, i in without.items() if 0 < len(i) < len(rows)]  # fmt: skip


def _hints(rows: Rows, data: DataSection, wanted: str | None, task: Task, found: Findings) -> list[str]:
    """What else could be made of the rows."""
    out, near = [], nearly(rows.values[0])
    told = [one for times in found.problems.values() for one in times]
    if near and not any(mapping(near) in one for one in told):
        out.append(f"columns whose names differ from those that are read in case or blanks only: {mapping(near)}")
    if wanted is None and isinstance(task, Pretraining):
        out.append(how_to_answer(rows.values[0], data.text_column, data.label_column))
    return out


def _without_tokens(rows: Rows, data: DataSection, task: Task, found: Findings) -> None:
    """What can be said of all rows at once without a model."""
    if found.files is not None and not found.files.opened and found.files.rows == found.files.of and found.problems:
        found.usable = 0
    try:
        found.classes = task.labels(data, [rows])
        if isinstance(task, CausalLM | Seq2Seq | ImageTextToText) and not isinstance(task, Pretraining):
            Prompter(data, cast("PreTrainedTokenizerBase", None)).resolved_format(rows)
    except DataError as error:
        found.problem(error, str(rows.path))
        found.usable = 0


def _encode(rows: Rows, data: DataSection, tokenizer: Any, task: Task, found: Findings, shown: Sequence[int]) -> None:
    prompter = task.prompter(data, tokenizer)
    found.usable, vocabulary = 0, len(tokenizer) if hasattr(tokenizer, "__len__") else 0
    try:
        labels = found.classes = task.labels(data, [rows])
    except DataError as error:
        found.problem(error, str(rows.path))
        return
    lengths = []
    for index in range(len(rows)):
        try:
            part = task.encode(rows.pick([index]), prompter, labels, vocabulary)
        except DataError as error:
            found.problem(error, rows.where(index))
            continue
        found.usable += bool(part.items)
        if part.items and (index in shown if shown else len(found.examples) < _SHOWN):
            found.examples[index] = task.rendered(part.items[0], tokenizer, labels)
            found.masks[index] = _tokens(part.items[0], tokenizer)
        lengths += [part.length(i) for i in range(len(part))]
        if part.truncated:
            most = f"max_length={data.max_length} tokens" if task.medium == "texts" else "the model takes"
            found.problem(DataError(f"longer than {most}, and cut"), rows.where(index))
    prompter.ledger.unread.update({f"column {name!r}": count for name, count in rows.unread().items()})
    found.notes = prompter.ledger.lines
    if prompter.ledger.unread:
        found.notes.append(f"nothing reads: {prompter.ledger.unread_line}")
    if task.medium == "texts":
        found.lengths["tokens of an example"] = _spread(lengths)


def _tokens(item: dict[str, Any], tokenizer: Any) -> list[Token]:
    """The tokens of an example; none where the loss is taken on the whole."""
    ids, targets = item.get("input_ids", []), item.get("labels")
    if "prefix" in item:  # of what is said in a sound, after what the model is told
        ids, targets = [*item["prefix"], *item["labels"]], [IGNORED] * len(item["prefix"]) + item["labels"]
        tokenizer = tokenizer.tokenizer
    if not isinstance(targets, list) or len(targets) != len(ids):
        return []
    return [Token(i, str(tokenizer.decode([i])), t != IGNORED) for i, t in zip(ids, targets, strict=True)]


def _spread(values: list[int]) -> tuple[int, int, int]:
    ordered = sorted(values) or [0]
    return int(statistics.median(ordered)), ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], ordered[-1]
