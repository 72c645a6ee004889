"""What shape rows have, by their columns; the shapes that others use become prompt and completion, or messages."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from ...errors import DataError
from ..conversations.messages import message_of, normalised
from .readers.row_check import Row
from .rows import Rows

IN_WORDS = MappingProxyType(
    {"alpaca": "alpaca form, taken as prompts and completions", "sharegpt": "ShareGPT form, taken as messages",
     "preference": "a chosen and a rejected text", "chat": "messages", "prompt_completion": "prompt and completion",
     "judged": "answers that are good or bad", "labelled": "text and label", "tagged": "tokens and tags",
     "asked": "questions on a context", "near": "texts that belong together", "pictured": "images and labels",
     "captioned": "images, with captions or with one for all",
     "spoken": "sounds and what is said in them", "sounding": "sounds and labels"}
)  # fmt: skip
"""Shapes as people are told of them; "columns" are named."""


def recognise(rows: Rows) -> tuple[Rows, str]:
    """The rows in a shape that the rest of training knows, and what shape they came in.

    "alpaca": instruction (and input) and output. "sharegpt": conversations of from and value. "preference": chosen
    and rejected, mostly with a prompt. "chat": messages. "prompt_completion". "labelled": text and label. "tagged":
    tokens and tags. "judged": prompt, completion and a label that is true or false. "asked": question and context.
    "near": anchor and positive. "pictured": image and label. "captioned": image and text, or image alone. "spoken":
    audio and text. "sounding": audio and label. "columns": anything else, which templates or `data.columns` must name.

    Raises:
        DataError: a row has not the shape of the first; has file and line.
    """
    columns = set(rows.values[0])
    if "conversations" in columns and "messages" not in columns:
        rows = _converted(rows, _sharegpt)
    if {"chosen", "rejected"} <= columns:
        return (_converted(rows, _instruction) if "instruction" in columns else rows), "preference"
    if {"instruction", "output"} <= columns:
        return _converted(rows, _alpaca), "alpaca"
    if "conversations" in columns:
        return rows, "sharegpt"
    if {"prompt", "completion", "label"} <= columns and isinstance(rows.values[0]["label"], bool):
        return rows, "judged"
    known = (("spoken", {"audio", "text"}), ("sounding", {"audio", "label"}),
             ("chat", {"messages"}), ("prompt_completion", {"prompt", "completion"}), ("labelled", {"text", "label"}),
             ("tagged", {"tokens", "tags"}), ("asked", {"question", "context"}),
             ("near", {"anchor", "positive"}), ("pictured", {"image", "label"}),
             ("captioned", {"image", "text"}))  # fmt: skip
    if columns == {"image"}:
        return rows, "captioned"
    return rows, next((name for name, needed in known if needed <= columns), "columns")


def _converted(rows: Rows, convert: Callable[[Rows, int], Row]) -> Rows:
    return Rows(rows.path, [{**rows.values[i], **convert(rows, i)} for i in range(len(rows))], rows.lines, rows.read)


def _alpaca(rows: Rows, index: int) -> Row:
    return {**_instruction(rows, index), "completion": rows.text(index, "output")}


def _instruction(rows: Rows, index: int) -> Row:
    prompt, more = rows.text(index, "instruction"), rows.get(index, "input") or ""
    if not isinstance(more, str):
        raise DataError("column 'input' is not text", where=rows.where(index), got=type(more).__name__)
    return {"prompt": f"{prompt}\n\n{more}" if more.strip() else prompt}


def _sharegpt(rows: Rows, index: int) -> Row:
    """The turns as messages; those of pairs end in one turn, better and worse."""
    where = rows.where(index)
    sides = {side: [message_of(value, where)] for side in ("chosen", "rejected")
             if isinstance(value := rows.values[index].get(side), dict)}  # fmt: skip
    return {"messages": normalised(rows.value(index, "conversations"), where, "conversations"), **sides}
