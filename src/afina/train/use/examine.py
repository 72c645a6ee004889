"""What a data file holds, before anything is trained on it."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from ..data.formats import recognise
from ..data.prompts import Prompter
from ..data.rows import Rows
from ..recipe.sections import DataSection
from ..report.events import Span
from ..tasks import Task, named
from ..tasks.causal_lm import CausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_TASK_OF = MappingProxyType(
    {"preference": "preference", "judged": "kto", "labelled": "sequence_classification",
     "tagged": "token_classification", "asked": "extractive_qa", "near": "embeddings"}
)  # fmt: skip
"""What rows of a shape are mostly for; all others are for a language model."""


@dataclass
class Findings:
    """What was found in a file.

    Attributes:
        rows: how many; `shape`: as `formats.recognise` names it; `task`: what they were checked for.
        columns: column -> (how many rows have it, its type).
        lengths: column of text -> (median, 95th percentile, longest) in words, or `tokens` for whole examples.
        labels: label -> rows, where there is a label column.
        duplicates: rows that are there more than once. `empty`: "file:line" of rows with an empty text.
        problems: what training would refuse, with file and line. `notes`: what it would take otherwise than it stands.
        examples: rendered samples with what the loss is taken on.
    """

    rows: int
    shape: str
    task: str
    columns: dict[str, tuple[int, str]]
    lengths: dict[str, tuple[int, int, int]]
    labels: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    empty: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    examples: list[list[Span]] = field(default_factory=list)


def examine(
    rows: Rows, data: DataSection, tokenizer: PreTrainedTokenizerBase | None = None, task: str | None = None
) -> Findings:
    """Count, measure and check every row, for the task that the columns speak for unless another is named.

    Raises:
        DataError: a row has not the shape of the first.
        RecipeError: no such task.
    """
    shaped, shape = recognise(rows)
    fitting = named(task or _TASK_OF.get(shape if data.prompt is None else "", CausalLM.name))
    counts = Counter(c for row in rows.values for c in row)
    kinds = {c: next(type(r[c]).__name__ for r in rows.values if c in r) for c in counts}
    found = Findings(len(rows), shape, fitting.name, {c: (n, kinds[c]) for c, n in counts.items()}, {})
    for column in (c for c, kind in kinds.items() if kind == "str"):
        texts = [r[column] for r in rows.values if isinstance(r.get(column), str)]
        found.lengths[column] = _spread([len(t.split()) for t in texts])
        found.empty += [rows.where(i) for i, r in enumerate(rows.values) if r.get(column) == ""][:5]
    if data.label_column in counts:
        found.labels = dict(Counter(str(r.get(data.label_column)) for r in rows.values).most_common(30))
    seen = Counter(json.dumps(r, sort_keys=True, default=str) for r in rows.values)
    found.duplicates = sum(n - 1 for n in seen.values())
    if fitting.name == "token_classification":
        found.labels = dict(Counter(str(t) for r in shaped.values for t in r.get("tags") or ()).most_common(30))
    if tokenizer is not None:
        _encode(shaped, data, tokenizer, fitting, found)
    return found


def _encode(rows: Rows, data: DataSection, tokenizer: Any, task: Task, found: Findings) -> None:
    prompter = Prompter(data, tokenizer)
    try:
        labels = task.labels(data, [rows])
    except DataError as error:
        found.problems.append(_told(error))
        return
    items: list[dict[str, Any]] = []
    lengths, cut = [], 0
    for index in range(len(rows)):
        try:
            part = task.encode(rows.pick([index]), prompter, labels, len(tokenizer))
        except DataError as error:
            told = _told(error)
            found.problems.append(told if rows.where(index) in told else f"{rows.where(index)}: {told}")
            continue
        items += part.items
        lengths += [part.length(i) for i in range(len(part))]
        cut += part.truncated
    prompter.ledger.unread.update({f"column {name!r}": count for name, count in rows.unread().items()})
    found.notes = prompter.ledger.lines
    if prompter.ledger.unread:
        found.notes.append(f"nothing reads: {prompter.ledger.unread_line}")
    found.lengths["tokens of an example"] = _spread(lengths)
    found.examples = [task.rendered(item, tokenizer, labels) for item in items[:2]]
    if cut:
        found.problems.append(f"{cut} rows are longer than max_length={data.max_length} tokens and are cut")


def _told(error: DataError) -> str:
    return str(error).replace("\n", "; ")


def _spread(values: list[int]) -> tuple[int, int, int]:
    ordered = sorted(values) or [0]
    return int(statistics.median(ordered)), ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], ordered[-1]
