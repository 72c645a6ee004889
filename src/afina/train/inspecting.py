"""What a data file holds, before anything is trained on it."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .encode import rendered_answers
from .events import Span
from .formats import recognise
from .recipe import DataSection
from .rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Findings:
    """What was found in a file.

    Attributes:
        rows: how many; `shape`: as `formats.recognise` names it.
        columns: column -> (how many rows have it, its type).
        lengths: column of text -> (median, 95th percentile, longest) in words, or `tokens` for whole examples.
        labels: label -> rows, where there is a label column.
        duplicates: rows that are there more than once. `empty`: "file:line" of rows with an empty text.
        problems: what training would refuse, with file and line.
        examples: rendered samples with what the loss is taken on.
    """

    rows: int
    shape: str
    columns: dict[str, tuple[int, str]]
    lengths: dict[str, tuple[int, int, int]]
    labels: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    empty: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    examples: list[list[Span]] = field(default_factory=list)


def examine(rows: Rows, data: DataSection, tokenizer: PreTrainedTokenizerBase | None = None) -> Findings:
    """Count, measure and check every row.

    Raises:
        DataError: a row has not the shape of the first.
    """
    shaped, shape = recognise(rows)
    counts = Counter(c for row in rows.values for c in row)
    kinds = {c: next(type(r[c]).__name__ for r in rows.values if c in r) for c in counts}
    found = Findings(len(rows), shape, {c: (n, kinds[c]) for c, n in counts.items()}, {})
    for column in (c for c, kind in kinds.items() if kind == "str"):
        texts = [r[column] for r in rows.values if isinstance(r.get(column), str)]
        found.lengths[column] = _spread([len(t.split()) for t in texts])
        found.empty += [rows.where(i) for i, r in enumerate(rows.values) if r.get(column) == ""][:5]
    if data.label_column in counts:
        found.labels = dict(Counter(str(r.get(data.label_column)) for r in rows.values).most_common(30))
    seen = Counter(json.dumps(r, sort_keys=True, default=str) for r in rows.values)
    found.duplicates = sum(n - 1 for n in seen.values())
    if tokenizer is not None and shape != "preference":
        _encode(shaped, data, tokenizer, found)
    return found


def _encode(rows: Rows, data: DataSection, tokenizer: Any, found: Findings) -> None:
    from .encode import encode_answers
    from .prompts import Prompter

    prompter = Prompter(data, tokenizer)
    try:
        kind = prompter.resolved_format(rows)
    except DataError as error:
        found.problems.append(str(error).replace("\n", "; "))
        return
    good = []
    for index in range(len(rows)):
        try:
            prompter.spans(rows, index, kind)
            good.append(index)
        except DataError as error:
            found.problems.append(str(error).replace("\n", "; "))
    if not good:
        return
    part = encode_answers(rows.pick(good), prompter, len(tokenizer))
    found.lengths["tokens of an example"] = _spread([len(item["input_ids"]) for item in part.items])
    found.examples = [rendered_answers(part[i], tokenizer) for i in range(min(2, len(part)))]
    if part.truncated:
        found.problems.append(f"{part.truncated} rows are longer than max_length={data.max_length} tokens and are cut")


def _spread(values: list[int]) -> tuple[int, int, int]:
    ordered = sorted(values) or [0]
    return int(statistics.median(ordered)), ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], ordered[-1]
