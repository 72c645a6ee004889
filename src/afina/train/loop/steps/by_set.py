"""The training loss of each data set by itself, heard while a step takes its loss: no row goes through the model twice.

A set's loss is the mean over its rows since the last log, a row's the mean over its trained tokens, as it is for
held-out rows; where a task's loss is of whole rows, it is what the row has in it, weights and the other rows of its
batch included. What a method adds to the loss is no row's and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ....devices.ranks import gathered
from ....kernels.listening import heard_by
from ...answers.row_losses import TellsRows
from ...data.encode import Encoded
from ...data.joined import Joined
from ...report.events import Reporter
from ...tasks.base import Task

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

KEY = "loss/"
"""What stands before a data set's name in the metrics."""
_SETS = "data_sets"
"""What a batch calls the sets of its rows."""


def tell_by_set(trainer: Any, task: Task, train: Encoded, reporter: Reporter) -> None:
    """Let a trainer log the loss of every data set, where its rows are of several."""
    if not isinstance(train.rows, Joined):
        return
    if not task.groups and not isinstance(task, TellsRows):
        reporter.note("the training loss is told of all data sets together, because this task's trainer draws the "
                      "answers that it learns from")  # fmt: skip
        return
    names = list(dict.fromkeys(train.rows.names))
    order = task.drawn(trainer.args.seed, train) if isinstance(task, TellsRows) else range(len(train))
    trainer.train_dataset = _WithSets(trainer.train_dataset, train, order, [names.index(n) for n in train.rows.names])
    trainer.data_collator = _Collator(trainer.data_collator)
    listener = OfRows(trainer, task, names) if isinstance(task, TellsRows) else OfPositions(trainer.model, task, names)
    log = trainer.log

    def logged(values: dict[str, float], *more: Any) -> None:
        log({**values, **listener.since_last()} if "loss" in values else values, *more)

    trainer.log = logged


class _WithSets(Dataset[dict[str, Any]]):
    """A trainer's rows, made of encoded ones in an order, that come with the numbers of the sets that they are of."""

    def __init__(self, rows: Any, encoded: Encoded, order: Sequence[int], of_row: Sequence[int]) -> None:
        self.rows, self.encoded, self.order, self.of_row = rows, encoded, order, of_row

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        made_of = self.encoded.made_of(self.encoded.at(self.order[index]))
        return {**self.rows[index], _SETS: [self.of_row[row] for row in made_of]}

    def __getattr__(self, name: str) -> Any:
        # Rows are asked for here, also by those who would ask for many at once; and nothing is there while unpickling.
        if name == "rows" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.rows, name)


class _Collator:
    """Hands the sets on beside the batch; in packed sequences the padding is one more row, which is of none."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        batch = self.inner([{k: v for k, v in item.items() if k != _SETS} for item in features])
        if _SETS in features[0]:
            # Several rows in each sequence; not all rows of the batch in one.
            packed = len(batch.get("position_ids", ())) == len(features)
            longest = batch["input_ids"].shape[1] if packed else 0
            sets = [item[_SETS] + [-1] * (packed and len(item["input_ids"]) < longest) for item in features]
            batch[_SETS] = torch.tensor([number for row in sets for number in row])
        return batch


class LossBySet:
    """Adds up the losses of rows by the set that they are of."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.sums = torch.zeros(2, len(names))
        """Losses of rows, and how many rows, by set."""

    def add(self, sets: Tensor, losses: Tensor, trained: Tensor) -> None:
        """Take the losses of rows, (rows,), of which some were `trained` on."""
        found = torch.stack([losses.float(), torch.ones_like(losses).float()])[:, trained]
        self.sums = self.sums.to(found.device).index_add_(1, sets[trained], found)

    def since_last(self) -> dict[str, float]:
        """The loss of each set that was trained on since this was last asked."""
        parts = gathered(self.sums.tolist())
        self.sums = torch.zeros_like(self.sums)
        totals, counts = ([sum(values) for values in zip(*side, strict=True)] for side in zip(*parts, strict=True))
        return {f"{KEY}{name}": total / count
                for name, total, count in zip(self.names, totals, counts, strict=True) if count}  # fmt: skip


class OfRows(LossBySet):
    """Hears what the models of a trainer say while it takes a loss over whole rows."""

    def __init__(self, trainer: Any, task: TellsRows, names: Sequence[str]) -> None:
        super().__init__(names)
        self.trainer, self.task, self.taken = trainer, task, trainer.compute_loss
        self.heard: list[Any] | None = None
        for model in (trainer.model, getattr(trainer, "ref_model", None)):
            if model is not None:
                model.register_forward_hook(self._said)
        trainer.compute_loss = self._compute

    def _said(self, model: nn.Module, given: Any, output: Any) -> None:
        if self.heard is not None:
            self.heard.append(output)

    def _compute(self, model: nn.Module, inputs: dict[str, Any], *more: Any, **options: Any) -> Any:
        sets = inputs.pop(_SETS, None)
        self.heard = None if sets is None else []
        try:
            loss = self.taken(model, inputs, *more, **options)
            if sets is not None and self.heard is not None:
                with torch.no_grad():
                    losses = self.task.row_losses(self.trainer, inputs, self.heard)
                    self.add(sets, losses, torch.ones_like(sets, dtype=torch.bool))
        finally:
            self.heard = None
        return loss


class OfPositions(LossBySet):
    """Hears the losses of the positions of a model's training steps."""

    def __init__(self, model: nn.Module, task: Task, names: Sequence[str]) -> None:
        super().__init__(names)
        self.task = task
        self.sets: Tensor | None = None
        self.heard: list[tuple[Tensor, Tensor, int]] = []
        self.listening: AbstractContextManager[None] | None = None
        model.register_forward_pre_hook(self._begins, with_kwargs=True)
        model.register_forward_hook(self._ends, with_kwargs=True, always_call=True)

    def _begins(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self.sets = kwargs.pop(_SETS, None)
        if self.sets is not None:
            self.heard = []
            self.listening = heard_by(lambda *found: self.heard.append(found))
            self.listening.__enter__()
        return args, kwargs

    @torch.no_grad()
    def _ends(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if self.listening is None or self.sets is None:
            return
        self.listening.__exit__(None, None, None)
        self.listening = None
        if output is None:  # it raised
            return
        heard = self.heard or [self.task.position_losses(kwargs, output)]
        each = torch.cat([losses.to(self.sets.device) for _, losses, _ in heard])
        at = torch.cat([places.to(self.sets.device) for places, _, _ in heard])
        row = _rows(at, heard[0][2], len(self.sets), kwargs)
        zeros = torch.zeros(2, len(self.sets), device=self.sets.device)
        total, tokens = zeros.index_add_(1, row, torch.stack([each.float(), torch.ones_like(each).float()]))
        self.add(self.sets, total / tokens.clamp(min=1), (tokens > 0) & (self.sets >= 0))


def _rows(positions: Tensor, of: int, rows: int, given: Mapping[str, Any]) -> Tensor:
    """The row of each position of a batch, one sequence after the other; in packed ones a row begins at position 0."""
    places = given.get("position_ids")
    if places is None or len(places) == rows:
        return positions // (of // rows)
    begun: Tensor = (places == 0).flatten().cumsum(0) - 1
    return begun.to(positions.device)[positions]


def by_set(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]] | None:
    """The loss of each set at the beginning and at the end of a run, by the lines of its metrics: the means of a
    quarter of them; None where there is one set."""
    losses: dict[str, list[float]] = {}
    for line in history:
        for key in (k for k in line if k.startswith(KEY)):
            losses.setdefault(key.removeprefix(KEY), []).append(line[key])
    ends = {name: -(-len(values) // 4) for name, values in losses.items()}
    return {name: {"first": fmean(values[: ends[name]]), "last": fmean(values[-ends[name] :])}
            for name, values in losses.items()} or None  # fmt: skip
