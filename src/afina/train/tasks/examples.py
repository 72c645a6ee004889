"""From the rows of a run to what its trainer takes: encoded as the task says, packed or grouped as the recipe says."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import DataError, RecipeError
from ..data.arranged.grouping import grouped
from ..data.arranged.packing import end_to_end, packed
from ..data.encode import IGNORED, Data, Encoded
from ..data.encoded_once import store
from ..data.labels import task_numbers
from ..data.prompts import Prompter
from ..data.rows import Rows
from ..data.split import Split
from ..recipe.sections import Recipe
from ..report.events import Progress, Reporter
from . import named

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(
    recipe: Recipe,
    split: Split,
    labels: list[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    reporter: Reporter,
) -> Data:
    """Encode both parts and say what was cut.

    Raises:
        DataError: a row cannot be used.
        RecipeError: the recipe wants what rows of this task cannot do.
    """
    task = named(recipe.task)
    prompter = task.prompter(recipe.data, tokenizer)
    if recipe.training.loss_on_prompt and not task.learns_prompts:
        raise RecipeError("this task takes no loss on prompts", where="training.loss_on_prompt", got=recipe.task,
                          fix="leave it out")  # fmt: skip

    key = (recipe.task, recipe.model.model_dump_json(), recipe.data.model_dump_json(), tuple(labels or ()), vocab_size)
    known = store()

    def fresh(rows: Rows) -> Encoded:
        return task.encode(rows, _told(prompter, len(rows), reporter), labels, vocab_size)

    def one(rows: Rows) -> Encoded:
        out = fresh(rows) if known is None else known.encoded(key, rows, prompter.ledger, fresh)
        for item in out.items if recipe.training.loss_on_prompt else ():
            item["labels"] = [IGNORED, *item["input_ids"][1:]]
        tasks = task_numbers(rows, recipe.data.task_column)
        if tasks is not None:
            for item, row in zip(out.items, out.source, strict=True):
                item["task_ids"] = tasks[row]
        return out

    train = task.training_items(recipe, one(split.train), prompter, reporter)
    held_out = one(split.held_out).by_length() if split.held_out is not None else None
    for name, part in (("training", train), ("held-out", held_out)):
        if part is not None:
            reporter.note(f"{name} rows: {len(part)} ({part.truncated} cut, {part.masked} dropped: no answer left)")
    _tell_unused(split, prompter, reporter)
    if not len(train):
        raise DataError("no usable rows", where=split.train.path)
    return Data(split, _arranged(recipe, train, reporter), held_out, labels)


def _told(prompter: Prompter, rows: int, reporter: Reporter) -> Prompter:
    """The prompter, telling how far it is where rows have images or sounds, which take their time."""
    if prompter.images is None:
        return prompter
    done, what = itertools.count(1), f"reading {prompter.images.what}"

    def heard() -> None:  # of conversations every answer is one
        reporter.progress(Progress(what, min(next(done), rows), rows))

    return replace(prompter, images=replace(prompter.images, heard=heard))


def _tell_unused(split: Split, prompter: Prompter, reporter: Reporter) -> None:
    """What was taken otherwise than it stands, and what nothing reads.

    Raises:
        DataError: there is something that nothing reads, and the recipe is strict.
    """
    ledger = prompter.ledger
    for line in ledger.lines:
        reporter.note(line)
    for rows in split.parts:
        ledger.unread.update({f"column {name!r}": count for name, count in rows.unread().items()})
    if not ledger.unread:
        return
    if prompter.data.strict:
        raise DataError("the rows hold what nothing reads", where=split.train.path, got=ledger.unread_line,
                        fix="leave it out of the rows, or set data.strict=false")  # fmt: skip
    reporter.note(f"nothing reads: {ledger.unread_line}")


def _arranged(recipe: Recipe, train: Encoded, reporter: Reporter) -> Encoded:
    """The rows packed, or grouped by length.

    Raises:
        RecipeError: the recipe wants what rows of this task cannot do.
    """
    task, t = named(recipe.task), recipe.training
    if t.packing:
        if not task.packs:
            raise RecipeError("rows of this task cannot share a sequence", where="training.packing", got=recipe.task,
                              fix="leave it out")  # fmt: skip
        return packed(recipe, train, reporter)
    if task.packs and task.fast and (laid := end_to_end(recipe, train, reporter)) is not None:
        return laid
    if task.groups:
        return grouped(recipe, train, reporter)
    if t.group_by_length:
        raise RecipeError("the trainer of this task draws its rows by itself", where="training.group_by_length",
                          got=recipe.task, fix="leave it out")  # fmt: skip
    return train
