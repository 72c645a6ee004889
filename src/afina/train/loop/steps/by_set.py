"""The training loss of each data set by itself, heard while a step takes its loss: no row goes through the model twice.

A set's loss is the mean over its rows since the last log, a row's the mean over its trained tokens, as it is for
held-out rows. What a method adds to the loss is no row's and is left out.
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
    if not task.groups:
        reporter.note("the training loss is told of all data sets together, because this task's trainer makes its "
                      "batches by itself")  # fmt: skip
        return
    names = list(dict.fromkeys(train.rows.names))
    trainer.train_dataset = _WithSets(train, [names.index(name) for name in train.rows.names])
    trainer.data_collator = _Collator(trainer.data_collator)
    listener, log = LossBySet(trainer.model, task, names), trainer.log

    def logged(values: dict[str, float], *more: Any) -> None:
        log({**values, **listener.since_last()} if "loss" in values else values, *more)

    trainer.log = logged


class _WithSets(Dataset[dict[str, Any]]):
    """Encoded rows that come with the numbers of the sets that they are of."""

    def __init__(self, encoded: Encoded, of_row: Sequence[int]) -> None:
        self.encoded, self.of_row = encoded, of_row

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = self.encoded.made_of(self.encoded.at(index))
        return {**self.encoded[index], _SETS: [self.of_row[row] for row in rows]}

    def __getattr__(self, name: str) -> Any:
        if name == "encoded":  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.encoded, name)


class _Collator:
    """Hands the sets on beside the batch; in packed sequences the padding is one more row, which is of none."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        batch = self.inner([{k: v for k, v in item.items() if k != _SETS} for item in features])
        if _SETS in features[0]:
            longest = batch["input_ids"].shape[1] if "input_ids" in batch else 0
            packed = len(batch.get("position_ids", ())) == len(features)  # not: all rows of the batch in one sequence
            sets = [item[_SETS] + [-1] * (packed and len(item["input_ids"]) < longest) for item in features]
            batch[_SETS] = torch.tensor([number for row in sets for number in row])
        return batch


class LossBySet:
    """Hears the losses of a model's training steps."""

    def __init__(self, model: nn.Module, task: Task, names: Sequence[str]) -> None:
        self.task, self.names = task, names
        self.sums = torch.zeros(2, len(names))
        """Losses of rows, and how many rows, by set."""
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
        trained = (tokens > 0) & (self.sets >= 0)
        means = torch.stack([total / tokens.clamp(min=1), torch.ones_like(total)])[:, trained]
        self.sums = self.sums.to(means.device).index_add_(1, self.sets[trained], means)

    def since_last(self) -> dict[str, float]:
        """The loss of each set that was trained on since this was last asked."""
        parts = gathered(self.sums.tolist())
        self.sums = torch.zeros_like(self.sums)
        totals, counts = ([sum(values) for values in zip(*side, strict=True)] for side in zip(*parts, strict=True))
        return {f"{KEY}{name}": total / count
                for name, total, count in zip(self.names, totals, counts, strict=True) if count}  # fmt: skip


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
