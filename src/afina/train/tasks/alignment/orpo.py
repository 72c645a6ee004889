"""Odds-ratio preference optimisation (Hong et al. 2024, arXiv 2403.07691) by TRL's experimental ORPOTrainer: no
reference model, the loss of the chosen answer and that of the odds of chosen over rejected are taken together.

TRL takes the first of them over prompt and answer; here too. A pair counts as right where the chosen answer is likelier
by the mean over its tokens; a tie counts half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ....core.config import method
from ....errors import RecipeError
from ...answers.batches import in_batches
from ...answers.evaluate import of_pairs, pair_loss, pair_right
from ...answers.judge import answer_log_probs
from ...data.encode import IGNORED, Data, Encoded
from ...recipe.sections import Recipe
from ...recipe.settings import method_config
from ...report.events import Progress
from ...report.scores import Scores
from ..arguments import refused, training_arguments
from ..base import Job
from .preference import Preference
from .reference import as_dataset

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_SIDES = ("chosen", "rejected")
_COLUMNS = ("prompt_input_ids", "prompt_attention_mask",
            *(f"{side}_{key}" for side in _SIDES for key in ("input_ids", "attention_mask", "labels")))  # fmt: skip


class ORPO(Preference):
    """Prompts with a chosen and a rejected answer."""

    name: ClassVar[str] = "orpo"
    shares: ClassVar[str] = "nearly"
    has_reference: ClassVar[bool] = False
    metric: ClassVar[str] = "preference accuracy"

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """TRL's."""
        from trl.experimental.utils import DPODataCollatorWithPadding

        return DPODataCollatorWithPadding(pad_token_id=tokenizer.pad_token_id)

    def arguments(self, recipe: Recipe, work: Path, learning_rate: float) -> Any:
        """TRL's settings; its beta is the paper's lambda."""
        from trl.experimental.orpo import ORPOConfig

        return training_arguments(
            recipe, work, learning_rate, kind=ORPOConfig, beta=recipe.training.beta, max_length=recipe.data.max_length,
            disable_dropout=False, include_num_input_tokens_seen="no",
        )  # fmt: skip

    def trainer(
        self, recipe: Recipe, model: Any, tokenizer: PreTrainedTokenizerBase, data: Data, arguments: Any
    ) -> Any:
        """TRL's own on our tokens: its own ones have a start and an end token whatever the template says.

        Raises:
            RecipeError: the method puts virtual tokens before the text.
        """
        import datasets
        from trl.experimental.orpo import ORPOTrainer

        if getattr(method(method_config(recipe)).implementation, "goes_into", None) == "embeddings":
            raise RecipeError("TRL's ORPOTrainer cannot tell virtual tokens from those of its answers",
                              where="method.type", got=recipe.method.type, fix="choose another method")  # fmt: skip
        held_out = self.watched(recipe, data)
        shown = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
        with refused("TRL's ORPOTrainer"):
            out = ORPOTrainer(
                model=model, args=arguments, processing_class=tokenizer, train_dataset=shown,
                eval_dataset=None if held_out is None else shown,
            )  # fmt: skip
        out.train_dataset, out.eval_dataset = tokenised(data.train), None if held_out is None else tokenised(held_out)
        return out

    def row_losses(self, trainer: Any, batch: Mapping[str, Any], outputs: Sequence[Any]) -> Tensor:
        """Both losses of each pair: that of the chosen answer after its prompt as the mean over its own tokens."""
        (said,), pairs = outputs, len(batch["chosen_labels"])
        both = trainer.concatenated_inputs(batch, padding_value=trainer.padding_value, device=said.logits.device)
        ids, there = both["concatenated_input_ids"], both["concatenated_attention_mask"] == 1
        whole = ids.where(there, IGNORED)[:pairs]
        logs = trainer.get_batch_logps(said.logits, both["concatenated_labels"], average_log_prob=True)
        odds: Tensor = trainer.odds_ratio_loss(logs[:pairs], logs[pairs:])[0]
        written: Tensor = trainer.get_batch_logps(said.logits[:pairs].float(), whole, average_log_prob=True)
        return -written - odds

    def score(self, job: Job) -> Scores:
        """The loss, and the share of pairs whose chosen answer is the likelier one."""
        losses, right = self.items(job)
        scores = of_pairs([value - 0.5 for value in right], self.metric)
        return Scores(sum(losses) / len(losses), scores.rows, scores.accuracy, scores.low, scores.high,
                      metric=self.metric)  # fmt: skip

    def items(self, job: Job) -> tuple[list[float], list[float]]:
        """The loss of every pair; 1 where the chosen answer is the likelier one, else 0."""
        assert job.data.held_out is not None
        items = job.data.held_out.items
        found = self._judged(job, items)
        return [loss for loss, _ in found], [pair_right(margin) for _, margin in found]

    def item_losses(self, job: Job, items: Sequence[dict[str, Any]]) -> list[float]:
        """The loss of every pair."""
        return [loss for loss, _ in self._judged(job, items)]

    def _judged(self, job: Job, items: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
        """Loss, and by how much the chosen answer is likelier."""
        model = job.trainer.model

        def judge(part: list[dict[str, Any]]) -> list[tuple[float, float]]:
            out: list[tuple[float, float]] = []
            whole = [item["prompt_ids"] + item["chosen_ids"] for item in part]
            sums = answer_log_probs(model, job.prompter, [(ids[:1], ids[1:]) for ids in whole])
            of_side = [
                [total / max(1, len(item[f"{side}_ids"])) for item, total in zip(part, answer_log_probs(
                    model, job.prompter, [(item["prompt_ids"], item[f"{side}_ids"]) for item in part]), strict=True)]
                for side in _SIDES
            ]  # fmt: skip
            for ids, total, chosen, rejected in zip(whole, sums, *of_side, strict=True):
                odds = chosen - rejected - _log1mexp(chosen) + _log1mexp(rejected)
                loss = job.recipe.training.beta * pair_loss(odds) - total / max(1, len(ids) - 1)
                out.append((loss, chosen - rejected))
            return out

        found = in_batches(
            items, job.recipe.evaluation.batch_size, judge,
            lambda done: job.reporter.progress(Progress(f"comparing ({job.stage})", done, len(items))),
        )  # fmt: skip
        return list(chain.from_iterable(found))


def _log1mexp(x: float) -> float:
    """log(1 − e^x) of a negative x."""
    x = min(x, -1e-7)
    return math.log(-math.expm1(x)) if x > -math.log(2) else math.log1p(-math.exp(x))


def tokenised(part: Encoded) -> Any:
    """Encoded pairs as TRL's collator takes them."""
    items = []
    for item in part.items:
        prompt = item["prompt_ids"]
        row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for side in _SIDES:
            answer = item[f"{side}_ids"]
            row[f"{side}_input_ids"] = prompt + answer
            row[f"{side}_attention_mask"] = [1] * len(prompt + answer)
            row[f"{side}_labels"] = [IGNORED] * len(prompt) + answer
        items.append(row)
    return as_dataset(Encoded(items, part.source), _COLUMNS)
