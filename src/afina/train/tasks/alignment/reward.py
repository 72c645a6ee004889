"""Reward models from preference pairs (Bradley and Terry 1952) by TRL's RewardTrainer: one number for a text.

Rows have a chosen and a rejected text, with or without a prompt before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...answers.evaluate import of_pairs
from ...answers.judge import scores_of_batch, text_scores
from ...answers.row_losses import TellsRows
from ...data.encode import Data, Encoded, check_vocabulary, token_ids
from ...data.pairs import pair_of
from ...data.prompts import Prompter
from ...data.rows import Rows
from ...recipe.sections import Recipe
from ...report.events import Reporter, Span
from ..arguments import refused, training_arguments
from ..base import Job, Predictions, Trained
from ..sequence_classification import pad_with
from .of_pairs import OfPairs
from .reference import as_dataset

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_SIDES = ("chosen_ids", "rejected_ids")


class Reward(OfPairs, TellsRows):
    """Chosen and rejected texts."""

    name: ClassVar[str] = "reward"
    shares: ClassVar[str] = "exactly"
    loader: ClassVar[str] = "AutoModelForSequenceClassification"
    columns: ClassVar[str] = "chosen and rejected, with or without prompt, as text or messages"
    groups: ClassVar[bool] = False
    metric: ClassVar[str] = "pairwise accuracy"

    def load_options(self, labels: list[str] | None) -> dict[str, Any]:
        """A head with one output."""
        return {"num_labels": 1}

    def loaded(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Tell the model what pads."""
        pad_with(model, tokenizer)

    def encode(self, rows: Rows, prompter: Prompter, labels: list[str] | None, vocab_size: int) -> Encoded:
        """Tokens of the better and of the worse text."""
        out, limit = Encoded(rows=rows), prompter.data.max_length
        for index in range(len(rows)):
            pair = pair_of(prompter, rows, index)
            chosen, rejected = pair.scored_ids(prompter, pair.chosen), pair.scored_ids(prompter, pair.rejected)
            check_vocabulary([*chosen, *rejected], rows.where(index), vocab_size)
            out.truncated += max(len(chosen), len(rejected)) > limit
            out.items.append({"chosen_ids": chosen[:limit], "rejected_ids": rejected[:limit]})
            out.source.append(index)
        return out

    def rendered(
        self, item: dict[str, Any], tokenizer: PreTrainedTokenizerBase, labels: list[str] | None
    ) -> list[Span]:
        """Both texts."""
        chosen, rejected = (str(tokenizer.decode(item[key])) for key in _SIDES)
        return [Span(chosen, True), Span(" rather than ", False), Span(rejected, True)]

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Better texts first, then the worse ones."""
        from trl.trainer.reward_trainer import DataCollatorForPreference

        return DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)

    def arguments(self, recipe: Recipe, work: Path, learning_rate: float) -> Any:
        """TRL's settings; rows are cut here, not dropped there."""
        from trl import RewardConfig

        return training_arguments(recipe, work, learning_rate, kind=RewardConfig, max_length=None)

    def trainer(
        self, recipe: Recipe, model: Any, tokenizer: PreTrainedTokenizerBase, data: Data, arguments: Any
    ) -> Any:
        """TRL's own."""
        from trl import RewardTrainer

        with refused("TRL's RewardTrainer"):
            return RewardTrainer(
                model=model, args=arguments, train_dataset=as_dataset(data.train, _SIDES),
                eval_dataset=as_dataset(self.watched(recipe, data), _SIDES), processing_class=tokenizer,
            )  # fmt: skip

    def row_losses(self, trainer: Any, batch: Mapping[str, Any], outputs: Sequence[Any]) -> Tensor:
        """-log sigmoid of the difference of each pair's scores."""
        from torch.nn.functional import logsigmoid

        chosen, rejected = outputs[0].logits.float().squeeze(-1).chunk(2)
        return -logsigmoid(chosen - rejected)

    def margins(self, job: Job, items: list[dict[str, Any]]) -> list[float]:
        """The difference of the two scores."""
        chosen, rejected = (
            scores_of_batch(job.trainer.model, job.prompter, [item[side] for item in items]) for side in _SIDES
        )
        return [a - b for a, b in zip(chosen, rejected, strict=True)]

    def told(self, trained: Trained, text: str, max_new_tokens: int) -> str:
        """The text's score."""
        prompter: Any = trained.prompter
        ids = token_ids(prompter, prompter.ended(text), first=True)[: prompter.data.max_length]
        return f"{text_scores(trained.model, prompter, [ids], batch_size=1)[0]:.4f}"

    def check_rows(self, rows: Rows, prompter: Prompter) -> None:
        """Each has a text, or both."""
        if not all({"chosen", "rejected"} <= set(row) for row in rows.values):
            kind = prompter.question_format(rows)
            for index in range(len(rows)):
                _text(prompter, rows, index, kind)

    def predict(
        self, trained: Trained, rows: Rows, reporter: Reporter, batch_size: int, max_new_tokens: int | None
    ) -> Predictions:
        """A column `score`; of rows with both texts `score_chosen` and `score_rejected`."""
        prompter = trained.prompter
        if all({"chosen", "rejected"} <= set(row) for row in rows.values):
            return self._of_pairs(trained, rows, batch_size)
        kind = prompter.question_format(rows)
        texts = [_text_ids(prompter, rows, i, kind)[: prompter.data.max_length] for i in range(len(rows))]
        scores = text_scores(trained.model, prompter, texts, batch_size=batch_size)
        return Predictions([{**row, "score": round(s, 6)} for row, s in zip(rows.values, scores, strict=True)])

    def _of_pairs(self, trained: Trained, rows: Rows, batch_size: int) -> Predictions:
        prompter = trained.prompter
        items = self.encode(rows, prompter, None, len(prompter.tokenizer)).items
        texts = [item[side] for side in _SIDES for item in items]
        scores = text_scores(trained.model, prompter, texts, batch_size=batch_size)
        chosen, rejected = scores[: len(items)], scores[len(items) :]
        out = [{**row, "score_chosen": round(c, 6), "score_rejected": round(r, 6)}
               for row, c, r in zip(rows.values, chosen, rejected, strict=True)]  # fmt: skip
        return Predictions(out, of_pairs([c - r for c, r in zip(chosen, rejected, strict=True)], self.metric))


def _text_ids(prompter: Prompter, rows: Rows, index: int, kind: str) -> list[int]:
    """The tokens of a text that is to be scored."""
    return token_ids(prompter, _text(prompter, rows, index, kind), first=True)


def _text(prompter: Prompter, rows: Rows, index: int, kind: str) -> str:
    """It as in training: of messages, of prompt and completion, or of text."""
    if kind == "chat" or "completion" in rows.values[index] or prompter.data.completion is not None:
        return prompter.whole(rows, index, kind)
    return prompter.ended(rows.text(index, prompter.data.text_column))
