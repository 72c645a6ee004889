"""Several processes measure the held-out loss together, and each has all of what they found."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any

from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from transformers.trainer_pt_utils import find_batch_size, nested_concat, nested_truncate

from ....devices.ranks import cut, gathered, turns


def share_measuring(trainer: Any) -> None:
    """Let the processes share the held-out batches out, and measure as one alone does.

    A batch's loss is a mean over what is in it, so the batches are those of one process, each done by one of them;
    accelerate would split every batch, and fill the last one up with rows that are there already. Trainers that take a
    loss of their own (TRL's) mean single numbers over batches beside it: there every process measures everything.
    """
    shared = type(trainer).compute_loss is Trainer.compute_loss and not cut()
    now, gather, step = {"rows": 0}, trainer.accelerator.gather_for_metrics, trainer.prediction_step

    class Counted(DataLoader):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            batches: Any = self.batch_sampler
            for number, batch in zip(batches.own, super().__iter__(), strict=True):
                now["rows"] = find_batch_size(batch) if number < batches.count else 0
                yield batch

    def own_batches(rows: Any = None) -> Any:
        rows = trainer.eval_dataset if rows is None else rows
        return Counted(rows, collate_fn=trainer.data_collator,
                       batch_sampler=_Batches(len(rows), trainer.args.per_device_eval_batch_size, shared))  # fmt: skip

    def of_all(found: Any, **how: Any) -> Any:
        if trainer.model.training:  # TRL asks for what all of them saw of a step
            return found if cut() else gather(found, **how)
        if hasattr(found, "ndim") and not found.ndim:  # and while measuring for single numbers, which need no cutting
            return found
        found = nested_truncate(found, now["rows"])  # a batch's loss comes as often as a full batch has rows
        return reduce(nested_concat, gathered(send_to_device(found, "cpu"))) if shared else found

    def by_itself(*args: Any, **how: Any) -> Any:
        """A batch's loss is the mean over its own tokens, not over those of the others' batches."""
        before, trainer.args.average_tokens_across_devices = trainer.args.average_tokens_across_devices, False
        try:
            return step(*args, **how)
        finally:
            trainer.args.average_tokens_across_devices = before

    trainer.get_eval_dataloader, trainer.accelerator.gather_for_metrics = own_batches, of_all
    trainer.gather_function = of_all
    if shared:
        trainer.prediction_step = by_itself


class _Batches(Sampler[list[int]]):
    """Of the batches of one process, in their order, those that this one does. Where `own` has a number from `count`
    on, the batch is somebody else's and done only so that all do equally many."""

    def __init__(self, rows: int, batch_size: int, shared: bool) -> None:
        self.batches = [list(range(rows)[start : start + batch_size]) for start in range(0, rows, batch_size)]
        self.count = len(self.batches)
        self.own = turns(self.count) if shared else range(self.count)

    def __len__(self) -> int:
        return len(self.own)

    def __iter__(self) -> Iterator[list[int]]:
        return (self.batches[number % self.count] for number in self.own)
