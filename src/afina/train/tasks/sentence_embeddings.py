"""Sentence embeddings: texts that belong together are near each other, by sentence-transformers' ranking loss.

The embedding is the mean over a text's tokens, as sentence-transformers' mean pooling. In a batch every anchor's own
positive is to be nearer than all others and than the row's negative (Henderson et al. 2017, arXiv 1705.00652). What
counts is how many held-out anchors have their own positive as the nearest of all held-out positives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import RecipeError
from ..answers.evaluate import wilson
from ..answers.judge import pooled, text_embeddings
from ..answers.row_losses import TellsRows
from ..data.encode import Data, Encoded, check_vocabulary
from ..data.prompts import Prompter
from ..data.rows import Rows
from ..recipe.sections import Recipe
from ..report.events import Progress, Reporter, Span
from ..report.scores import Scores
from .arguments import training_arguments
from .base import Job, Predictions, Task, Trained

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_PLACES = ("anchor", "positive", "negative")
_SHARPNESS = 20
"""What sentence-transformers multiplies cosines by."""


class Embeddings(Task, TellsRows):
    """Anchors and positives, with or without negatives."""

    name: ClassVar[str] = "embeddings"
    shares: ClassVar[str] = "never"
    loader: ClassVar[str] = "AutoModel"
    columns: ClassVar[str] = "anchor and positive, with or without negative"
    groups: ClassVar[bool] = False

    def encode(self, rows: Rows, prompter: Prompter, labels: list[str] | None, vocab_size: int) -> Encoded:
        """Tokens of each text of a row; all rows have the texts that the first one has."""
        out, places = Encoded(rows=rows), [p for p in _PLACES if p in rows.values[0] or p != "negative"]
        for index in range(len(rows)):
            item = {}
            for place in places:
                ids, cut = _ids(prompter, rows.text(index, place))
                check_vocabulary(ids, rows.where(index), vocab_size)
                item[f"{place}_ids"] = ids
                out.truncated += cut
            out.items.append(item)
            out.source.append(index)
        return out

    def rendered(
        self, item: dict[str, Any], tokenizer: PreTrainedTokenizerBase, labels: list[str] | None
    ) -> list[Span]:
        """The texts of a row."""
        texts = [str(tokenizer.decode(item[f"{place}_ids"])) for place in _PLACES if f"{place}_ids" in item]
        spans = [Span(texts[0], False), Span(" is near ", False), Span(texts[1], True)]
        return spans if len(texts) == 2 else [*spans, Span(", not ", False), Span(texts[2], True)]

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Pads the texts of each place by themselves."""

        def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
            out: dict[str, Any] = {}
            for place in (p for p in _PLACES if f"{p}_ids" in items[0]):
                batch = tokenizer.pad([{"input_ids": item[f"{place}_ids"]} for item in items], padding_side="right",
                                      return_tensors="pt")  # fmt: skip
                out |= {f"{place}_{key}": batch[key] for key in ("input_ids", "attention_mask")}
            return out

        return collate

    def check(self, recipe: Recipe) -> None:
        """A batch of one row has nothing to be told apart from."""
        if recipe.training.batch_size < 2:
            raise RecipeError("a batch of one row has no other texts to tell apart", where="training.batch_size",
                              got=1, expected="2 or more; the more, the better")  # fmt: skip

    def arguments(self, recipe: Recipe, work: Path, learning_rate: float) -> Any:
        """Without a count of tokens, which rows of several texts have in several places."""
        return training_arguments(recipe, work, learning_rate, prediction_loss_only=True,
                                  include_num_input_tokens_seen="no")  # fmt: skip

    def trainer(
        self, recipe: Recipe, model: Any, tokenizer: PreTrainedTokenizerBase, data: Data, arguments: Any
    ) -> Any:
        """Transformers' own with sentence-transformers' loss.

        Raises:
            RecipeError: sentence-transformers is not installed.
        """
        if find_spec("sentence_transformers") is None:
            raise RecipeError("the package sentence-transformers is missing", where="task", got=self.name,
                              fix="pip install 'afina[embeddings]'")  # fmt: skip
        from .ranking import RankingTrainer

        return RankingTrainer(
            model=model, args=arguments, train_dataset=data.train, eval_dataset=self.watched(recipe, data),
            data_collator=self.collator(tokenizer), processing_class=tokenizer,
        )  # fmt: skip

    def row_losses(self, trainer: Any, batch: Mapping[str, Any], outputs: Sequence[Any]) -> Tensor:
        """How far each anchor's positive is from being alone among all texts of its batch."""
        import torch
        from torch.nn.functional import cross_entropy, normalize

        masks = [value for key, value in batch.items() if key.endswith("_attention_mask")]
        anchors, *others = (normalize(pooled(said.last_hidden_state, mask).float(), dim=1)
                            for said, mask in zip(outputs, masks, strict=True))  # fmt: skip
        found = _SHARPNESS * anchors @ torch.cat(others).T
        return cross_entropy(found, torch.arange(len(found), device=found.device), reduction="none")

    def score(self, job: Job) -> Scores:
        """The loss over batches of held-out rows, and the share of anchors whose positive is the nearest of all."""
        right = self.items_right(job)
        loss = float(job.trainer.evaluate(job.data.held_out)["eval_loss"])
        low, high = wilson(sum(right), len(right))
        return Scores(loss, len(right), sum(right) / len(right), low, high, metric="retrieval accuracy")

    def items_right(self, job: Job) -> list[float]:
        """1 where an anchor's positive is the nearest of all held-out positives, else 0."""
        return [float(rank == i) for i, rank in enumerate(self._similarities(job).argmax(1).tolist())]

    def item_losses(self, job: Job, items: Sequence[dict[str, Any]]) -> list[float]:
        """How far an anchor's positive is from being alone among the positives: cross-entropy over all of them."""
        import torch

        found = _SHARPNESS * self._similarities(job, items)
        losses = torch.nn.functional.cross_entropy(found, torch.arange(len(found)), reduction="none")
        return [float(loss) for loss in losses]

    def _similarities(self, job: Job, items: Sequence[dict[str, Any]] | None = None) -> Any:
        """Cosines of anchors and positives, [rows, rows]."""
        if items is None:
            assert job.data.held_out is not None
            items = job.data.held_out.items
        anchors, positives = (
            _embedded(job.trainer.model, job.prompter, [item[f"{place}_ids"] for item in items],
                      job.recipe.evaluation.batch_size, job.reporter, f"embedding ({job.stage})")
            for place in ("anchor", "positive")
        )  # fmt: skip
        return anchors @ positives.T

    def told(self, trained: Trained, text: str, max_new_tokens: int) -> str:
        """The embedding's numbers, of length 1."""
        ids, _ = _ids(trained.prompter, text)
        (row,) = _embedded(trained.model, trained.prompter, [ids], 1, Reporter(), "").tolist()
        return " ".join(f"{value:.4f}" for value in row)

    def check_rows(self, rows: Rows, prompter: Prompter) -> None:
        """Each has the texts of the first."""
        for index in range(len(rows)):
            for column in _columns(rows, prompter):
                rows.text(index, column)

    def predict(
        self, trained: Trained, rows: Rows, reporter: Reporter, batch_size: int, max_new_tokens: int | None
    ) -> Predictions:
        """Of pairs a column `similarity`, else of texts a column `embedding`."""
        prompter = trained.prompter
        columns = _columns(rows, prompter)
        pairs = len(columns) > 1
        found = [_embedded(trained.model, prompter, [_ids(prompter, rows.text(i, c))[0] for i in range(len(rows))],
                           batch_size, reporter, "predicting") for c in columns]  # fmt: skip
        if not pairs:
            return Predictions([{**row, "embedding": [round(v, 6) for v in e]}
                                for row, e in zip(rows.values, found[0].tolist(), strict=True)])  # fmt: skip
        near = found[0] @ found[1].T
        right = sum(rank == i for i, rank in enumerate(near.argmax(1).tolist()))
        out = [{**row, "similarity": round(s, 6)} for row, s in zip(rows.values, near.diagonal().tolist(), strict=True)]
        low, high = wilson(right, len(rows))
        return Predictions(out, Scores(None, len(rows), right / len(rows), low, high, metric="retrieval accuracy"))


def _columns(rows: Rows, prompter: Prompter) -> tuple[str, ...]:
    """The columns that are embedded: of pairs both, else the text."""
    pairs = {"anchor", "positive"} <= set(rows.values[0])
    return ("anchor", "positive") if pairs else (prompter.data.text_column,)


def _ids(prompter: Prompter, text: str) -> tuple[list[int], bool]:
    """Tokens of a text, and whether it was cut."""
    limit = prompter.data.max_length
    ids = list(prompter.tokenizer(text)["input_ids"])
    if len(ids) <= limit:
        return ids, False
    return list(prompter.tokenizer(text, truncation=True, max_length=limit)["input_ids"]), True


def _embedded(
    model: Any, prompter: Prompter, texts: Sequence[list[int]], batch_size: int, reporter: Reporter, stage: str
) -> Any:
    return text_embeddings(
        model, prompter, texts, batch_size=batch_size,
        progress=lambda done: reporter.progress(Progress(stage, done, len(texts))),
    )  # fmt: skip
