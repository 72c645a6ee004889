"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306) by TRL's KTOTrainer: answers that are good
or bad by themselves, without a counterpart.

The reward of an answer is beta · (log p − log p_reference), the reference point the mean log-ratio of answers put to
other prompts. What counts is whether good answers get higher rewards than bad ones: the share of all pairs of a good
and a bad held-out answer in which the good one does (the area under the ROC curve), ties counting half.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from ....errors import DataError
from ...answers.batches import in_batches
from ...answers.row_losses import TellsRows
from ...data.encode import Data, Encoded, check_vocabulary
from ...data.pairs import answered
from ...data.prompts import Prompter
from ...data.rows import Rows
from ...recipe.sections import Recipe
from ...report.events import Progress, Span
from ...report.scores import Scores
from ..arguments import training_arguments
from ..base import BEFORE, Job
from .reference import HeldToReference, held_to_reference, log_ratios

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_SOURCE = ("prompt_ids", "completion_ids", "label", "KL_completion_ids")
_WORDS = MappingProxyType({"true": True, "false": False})


class KTO(HeldToReference, TellsRows):
    """Prompts with an answer that is good or bad."""

    name: ClassVar[str] = "kto"
    columns: ClassVar[str] = "prompt, completion and label (true: a good answer), as text or messages"

    def encode(self, rows: Rows, prompter: Prompter, labels: list[str] | None, vocab_size: int) -> Encoded:
        """The tokens of prompt and answer, and what is thought of it."""
        out, limit = Encoded(rows=rows), prompter.data.max_length
        for index in range(len(rows)):
            pair, good = answered(prompter, rows, index), is_good(rows, index, prompter.data.label_column)
            prompt, answer, _ = pair.answers(prompter)
            check_vocabulary([*prompt, *answer], rows.where(index), vocab_size)
            out.truncated += len(prompt) + len(answer) > limit
            if len(prompt) >= limit:
                out.masked += 1
                continue
            ids = {"prompt_ids": prompt, "completion_ids": answer[: limit - len(prompt)]}
            out.items.append({"label": good, **ids})
            out.source.append(index)
        out.check_masked(rows, prompter.data)
        return out

    def rendered(
        self, item: dict[str, Any], tokenizer: PreTrainedTokenizerBase, labels: list[str] | None
    ) -> list[Span]:
        """The prompt, the answer, and what is thought of it."""
        prompt, answer = (str(tokenizer.decode(item[key])) for key in ("prompt_ids", "completion_ids"))
        return [Span(prompt, False), Span(answer, True), Span(" (good)" if item["label"] else " (bad)", False)]

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """TRL's: prompts with their answers, and with those of their neighbours."""
        from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

        return DataCollatorForUnpairedPreference(pad_token_id=tokenizer.pad_token_id)

    def arguments(self, recipe: Recipe, work: Path, learning_rate: float) -> Any:
        """TRL's settings."""
        from trl import KTOConfig

        return training_arguments(
            recipe, work, learning_rate, kind=KTOConfig, beta=recipe.training.beta, max_length=recipe.data.max_length
        )

    def trainer(
        self, recipe: Recipe, model: Any, tokenizer: PreTrainedTokenizerBase, data: Data, arguments: Any
    ) -> Any:
        """TRL's own. It takes the rows in our order, so they are shuffled once; good and bad ones weigh the same."""
        from trl import KTOTrainer

        order = self.drawn(recipe.training.seed, data.train)
        shuffled = Encoded([data.train.items[i] for i in order], [data.train.source[i] for i in order])
        good = sum(item["label"] for item in shuffled.items)
        bad = len(order) - good
        if good and bad:
            arguments.desirable_weight, arguments.undesirable_weight = max(1.0, bad / good), max(1.0, good / bad)
        held_out, batch = self.watched(recipe, data), recipe.training.batch_size
        parts = _with_neighbours(shuffled, batch), held_out and _with_neighbours(held_out, batch)
        return held_to_reference(KTOTrainer, recipe, model, tokenizer, arguments, parts, _SOURCE)

    def drawn(self, seed: int, train: Encoded) -> list[int]:
        """The order that the rows are shuffled to."""
        order = list(range(len(train)))
        random.Random(seed).shuffle(order)
        return order

    def row_losses(self, trainer: Any, batch: Mapping[str, Any], outputs: Sequence[Any]) -> Tensor:
        """The weighted loss of each answer, with the reference point of its batch: policy and reference each spoke of
        the neighbours' answers first."""
        import torch

        tokens, good = batch["input_ids"].shape[1] - 1, batch["label"].bool()
        _, policy, _, reference = (said.log_probs for said in outputs)
        ratios = (policy[:, -tokens:].float() - reference[:, -tokens:].float()).sum(1)
        point = trainer._metrics["train"]["kl"][-1]
        weights = torch.where(good, trainer.desirable_weight, trainer.undesirable_weight)
        return weights * (1 - torch.sigmoid(trainer.beta * torch.where(good, ratios - point, point - ratios)))

    def score(self, job: Job) -> Scores:
        """The loss with the reference point of all held-out rows; and how well rewards tell good from bad."""
        losses, right = self.items(job)
        if right is None and job.stage == BEFORE:
            assert job.data.held_out is not None
            kind = "good" if job.data.held_out.items[0]["label"] else "bad"
            job.reporter.warn(f"all {len(losses)} held-out answers are {kind}: whether rewards tell good from bad "
                              "(reward AUC) cannot be measured, only the loss is told")  # fmt: skip
        share = None if right is None else sum(right) / len(right)
        return Scores(sum(losses) / len(losses), len(losses), share, metric="reward AUC")

    def items(self, job: Job) -> tuple[list[float], list[float] | None]:
        """The loss of every row; and the share of the rows of the other kind that its reward is on the right side
        of, None where there is no other kind."""
        assert job.data.held_out is not None
        items = job.data.held_out.items
        ratios = self._ratios(job, items)
        return self._losses(job, items, ratios), _sides(items, ratios)

    def item_losses(self, job: Job, items: Sequence[dict[str, Any]]) -> list[float]:
        """1 − sigmoid of how far a reward is on the right side of the reference point."""
        return self._losses(job, items, self._ratios(job, items))

    def _losses(self, job: Job, items: Sequence[dict[str, Any]], ratios: Sequence[float]) -> list[float]:
        beta, point = job.recipe.training.beta, self._reference_point(job, items)
        signed = [ratio - point if item["label"] else point - ratio for ratio, item in zip(ratios, items, strict=True)]
        return [(1 - math.tanh(beta * margin / 2)) / 2 for margin in signed]

    def _reference_point(self, job: Job, items: Sequence[dict[str, Any]]) -> float:
        others = [{**item, "completion_ids": items[i - 1]["completion_ids"]} for i, item in enumerate(items)]
        return max(0.0, sum(self._ratios(job, others)) / len(others))

    def _ratios(self, job: Job, items: Sequence[dict[str, Any]]) -> list[float]:
        pairs = [(item["prompt_ids"], item["completion_ids"]) for item in items]
        found = in_batches(
            pairs, job.recipe.evaluation.batch_size, lambda part: log_ratios(job, part),
            lambda done: job.reporter.progress(Progress(f"judging ({job.stage})", done, len(pairs))),
        )  # fmt: skip
        return list(chain.from_iterable(found))


def _with_neighbours(part: Encoded, batch: int) -> Encoded:
    """Every item with the answer of the one before it in its batch, of which TRL estimates the reference point."""
    items = part.items
    others = [items[i - 1 if i % batch else min(i + batch, len(items)) - 1] for i in range(len(items))]
    made = [{**item, "KL_completion_ids": o["completion_ids"]} for item, o in zip(items, others, strict=True)]
    return Encoded(made, part.source)


def _sides(items: Sequence[dict[str, Any]], ratios: Sequence[float]) -> list[float] | None:
    pairs = list(zip(ratios, items, strict=True))
    good, bad = ([ratio for ratio, item in pairs if item["label"] is kind] for kind in (True, False))
    if not good or not bad:
        return None
    return [_above(ratio, bad) if item["label"] else 1 - _above(ratio, good) for ratio, item in pairs]


def _above(value: float, others: Sequence[float]) -> float:
    """The share of others that a value is above; one as high counts half."""
    return sum((value > other) + (value == other) / 2 for other in others) / len(others)


def is_good(rows: Rows, index: int, column: str) -> bool:
    """Whether a row's answer is called good.

    Raises:
        DataError: the label says neither.
    """
    value = rows.value(index, column)
    found = _WORDS.get(value.strip().lower()) if isinstance(value, str) else value
    if found not in (True, False):
        raise DataError("a label says neither good nor bad", where=rows.where(index), got=repr(value)[:80],
                        expected="true, false, 1 or 0")  # fmt: skip
    return bool(found)
