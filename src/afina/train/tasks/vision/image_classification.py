"""One label for an image: a fresh head on a vision model (ViT, ConvNeXt, ResNet, CLIP)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ....core.config import PeftConfig
from ....core.inject.architectures import HEAD_NAMES
from ....core.model.peft_model import PeftModel, add_heads
from ....errors import DataError, RecipeError
from ...answers.evaluate import share_right
from ...answers.judge import check_loss, class_logits
from ...base.image_processor import FILE, load_image_processor
from ...conversations.image_files import found_at, opened, thumbnail
from ...conversations.processor import Images
from ...data.encode import Data, Encoded
from ...data.labels import checked_labels, found_labels, label_of, task_numbers
from ...data.prompts import Prompter
from ...data.rows import Rows
from ...recipe.sections import DataSection, ModelSection, Recipe
from ...report.events import Progress, Reporter, Span
from ...report.scores import Scores
from ..answering import label_scores
from ..base import Job, Predictions, Task, Trained
from ..sequence_classification import head_options
from .image_batches import ImageBatches, values_of
from .statistics import keep_statistics

IMAGE = "image"
_LIKELY = ("img", "path", "file", "file_name", "filename", "image_path", "picture")
_SHOWN, _WRONG = 6, 24
"""Held-out images that are shown whatever is said of them, and wrong ones."""


class ImageClassification(Task):
    """Images and labels."""

    name: ClassVar[str] = "image_classification"
    loader: ClassVar[str] = "AutoModelForImageClassification"
    columns: ClassVar[str] = "image and label, or a folder of images for each label"
    classes: ClassVar[bool] = True
    groups: ClassVar[bool] = False
    shares: ClassVar[str] = "exactly"
    reader_file: ClassVar[str] = FILE
    pictures: ClassVar[bool] = True

    @property
    def fresh_heads(self) -> tuple[str, ...]:
        """As other classifiers have it; a head for other labels is replaced."""
        return HEAD_NAMES

    def reader(self, location: str, section: ModelSection, reporter: Reporter) -> Any:
        """The model's image processor."""
        return load_image_processor(location, section)

    def headed(self, config: PeftConfig, base: Any) -> PeftConfig:
        """The config with the head among the `modules_to_save`.

        Raises:
            RecipeError: the model has no head of a known name.
        """
        if not {name for name, _ in base.named_children()} & {*HEAD_NAMES}:
            raise RecipeError("no head is recognised in this model", where="model.path", got=type(base).__name__,
                              expected=f"one of {', '.join(HEAD_NAMES)}")  # fmt: skip
        add_heads(config, base, HEAD_NAMES)
        return config

    def labels(self, data: DataSection, parts: Sequence[Rows]) -> list[str]:
        """Those that the recipe names, else those found in the training rows."""
        if data.label_column not in (first := parts[0].values[0]):
            raise DataError("images without labels", where=parts[0].where(0), got=f"columns {', '.join(first)}",
                            fix="put them into a folder for each label, or name data.label_column")  # fmt: skip
        labels = data.labels if data.labels is not None else found_labels(parts[0], data.label_column)
        return checked_labels(parts, data.label_column, labels)

    def load_options(self, labels: list[str] | None) -> dict[str, Any]:
        """The labels' names; a head for others is replaced by a fresh one."""
        return {**head_options(labels), "ignore_mismatched_sizes": True}

    def prompter(self, data: DataSection, tokenizer: Any) -> Prompter:
        """One that keeps the image processor."""
        return Prompter(data, tokenizer, Images(tokenizer))

    def encode(self, rows: Rows, prompter: Prompter, labels: list[str] | None, vocab_size: int) -> Encoded:
        """Where each image is, and its label's position; every image is read once, to know that it can be.

        Raises:
            DataError: an image cannot be read, or the processor leaves images of several sizes.
        """
        data = prompter.data
        items = image_items(rows, prompter.images.heard if prompter.images else lambda: None, prompter.tokenizer)
        for index, item in enumerate(items):
            item["labels"] = (labels or []).index(label_of(rows, index, data.label_column, labels or []))
        return Encoded(items, list(range(len(items))), rows=rows)

    def rendered(self, item: dict[str, Any], tokenizer: Any, labels: list[str] | None) -> list[Span]:
        """The image's file and its label."""
        label = labels[item["labels"]] if labels else str(item["labels"])
        return [Span(item["where"], False), Span(f" -> {label}", True)]

    def collator(self, tokenizer: Any) -> Any:
        """Reads images and lets the processor make a batch of them."""
        return ImageBatches(tokenizer)

    def arguments(self, recipe: Recipe, work: Path, learning_rate: float) -> Any:
        """The trainer's settings; it has no tokens to count."""
        out = super().arguments(recipe, work, learning_rate)
        out.include_num_input_tokens_seen = "no"
        return out

    def trainer(self, recipe: Recipe, model: Any, tokenizer: Any, data: Data, arguments: Any) -> Any:
        """Training images are changed as the recipe says; the base's normalisation keeps its statistics."""
        for item in data.train.items if recipe.training.augment else ():
            item["augment"] = tuple(recipe.training.augment)
        if isinstance(model, PeftModel):
            keep_statistics(model)
        out = super().trainer(recipe, model, tokenizer, data, arguments)
        out.data_collator = ImageBatches(tokenizer, model.dtype)
        return out

    def score(self, job: Job) -> Scores:
        """Held-out loss and accuracy, which labels are taken for which, and wrong images."""
        from torch import tensor
        from torch.nn.functional import cross_entropy

        held_out, names = job.data.held_out, job.data.labels or []
        assert held_out is not None
        logits = self._logits(job)
        loss = float(cross_entropy(logits, tensor([item["labels"] for item in held_out.items])))
        check_loss(loss)
        got = [names[i] for i in logits.argmax(1).tolist()]
        expected = [names[item["labels"]] for item in held_out.items]
        right = sum(map(str.__eq__, got, expected))
        pairs = list(zip(held_out.items, expected, got, strict=True))
        wrong = [pair for pair in pairs if pair[1] != pair[2]]
        return replace(share_right(loss, right, expected, _pictured(pairs[:_SHOWN])),
                       confusion=confusion_of(expected, got), wrong=_pictured(wrong[:_WRONG]))  # fmt: skip

    def items_right(self, job: Job) -> list[float]:
        """1 where the likeliest label is the row's, else 0."""
        assert job.data.held_out is not None
        found = self._logits(job).argmax(1).tolist()
        return [float(k == item["labels"]) for k, item in zip(found, job.data.held_out.items, strict=True)]

    def _logits(self, job: Job) -> Any:
        assert job.data.held_out is not None
        items = job.data.held_out.items
        return class_logits(
            job.trainer.model, self.collator(job.prompter.tokenizer), items,
            batch_size=job.recipe.evaluation.batch_size,
            progress=lambda done: job.reporter.progress(Progress(f"looking ({job.stage})", done, len(items))),
        )  # fmt: skip

    def probe(self, prompter: Prompter, text: str, device: Any) -> dict[str, Any]:
        """An image of noise that is drawn by the text."""
        import numpy as np
        from PIL import Image

        noise = np.random.default_rng(list(text.encode())).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        return {k: v.to(device) for k, v in values_of(prompter.tokenizer, [Image.fromarray(noise)], text).items()}

    def told(self, trained: Trained, text: str, max_new_tokens: int) -> str:
        """The likeliest labels of the image in a file, with their probabilities."""
        item = {"image": found_at(text.strip(), Path(), "the message"), "where": text.strip()}
        numbers = trained.task_numbers(1)
        (row,) = self._probabilities(trained, [{**item, "task_ids": numbers[0]} if numbers else item], 1)
        ranked = sorted(zip(row.tolist(), trained.labels or [], strict=True), reverse=True)[:5]
        return "  ".join(f"{label} {share:.3f}" for share, label in ranked)

    def predict(
        self, trained: Trained, rows: Rows, reporter: Reporter, batch_size: int, max_new_tokens: int | None
    ) -> Predictions:
        """Columns `prediction` and `probability`."""
        data, names = trained.recipe.data, trained.labels or []
        items = image_items(rows, lambda: None)
        for item, number in zip(items, task_numbers(rows, data.task_column) or (), strict=False):
            item["task_ids"] = number
        found = self._probabilities(
            trained, items, batch_size, lambda done: reporter.progress(Progress("predicting", done, len(items)))
        )
        best, position = found.max(-1)
        got = [names[i] for i in position.tolist()]
        out = [{**row, "prediction": name, "probability": round(p, 6)}
               for row, name, p in zip(rows.values, got, best.tolist(), strict=True)]  # fmt: skip
        scores = label_scores(rows, got, data.label_column, names)
        if scores is not None:
            expected = [label_of(rows, i, data.label_column, names) for i in range(len(rows))]
            scores = replace(scores, confusion=confusion_of(expected, got))
        return Predictions(out, scores)

    def _probabilities(
        self, trained: Trained, items: list[dict[str, Any]], batch_size: int,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Any:  # fmt: skip
        collate = self.collator(trained.tokenizer)
        return class_logits(trained.model, collate, items, batch_size=batch_size, progress=progress).softmax(1)


def image_items(rows: Rows, heard: Callable[[], None], processor: Any = None) -> list[dict[str, Any]]:
    """Where each row's image is, and how it is called in messages.

    Args:
        heard: called for every image.
        processor: where given, every image is read, and one of each size is put through it.

    Raises:
        DataError: a row has no image, or it cannot be read.
    """
    out: list[dict[str, Any]] = []
    sizes: dict[tuple[int, int], tuple[int, ...]] = {}
    for index in range(len(rows)):
        where = rows.where(index)
        source = found_at(image_of(rows, index), rows.folder(index), where)
        out.append({"image": source, "where": f"{where} ({_short(source)})" if isinstance(source, str) else where})
        if processor is not None:
            image = opened(source, out[-1]["where"])
            if image.size not in sizes and len(set(sizes.values())) < 2:
                sizes[image.size] = tuple(values_of(processor, [image], where)["pixel_values"].shape)
                _check_sizes(set(sizes.values()), out[-1]["where"])
            heard()
    return out


def image_of(rows: Rows, index: int) -> Any:
    """What a row names as its image.

    Raises:
        DataError: it lacks the column; says how to name one that looks like it.
    """
    columns = rows.values[index]
    like = next((name for name in _LIKELY if name in columns), None)
    if IMAGE not in columns and like is not None:
        raise DataError(f"no column {IMAGE!r}", where=rows.where(index), got=f"columns {', '.join(map(repr, columns))}",
                        fix=f"data.columns={{{IMAGE}: {like}}}")  # fmt: skip
    return rows.value(index, IMAGE)


def _short(path: str) -> str:
    """A file with its folder, which mostly is its class."""
    return "/".join(Path(path).parts[-2:])


def _check_sizes(shapes: set[tuple[int, ...]], where: str) -> None:
    if len(shapes) > 1:
        raise DataError("the model's processor leaves images in several sizes, which no batch can hold", where=where,
                        got=" and ".join(" x ".join(map(str, s[-2:])) for s in sorted(shapes)),
                        fix="save all images in one size")  # fmt: skip


def confusion_of(expected: Sequence[str], got: Sequence[str]) -> dict[str, dict[str, int]]:
    """Label -> answer -> how many rows."""
    out: dict[str, dict[str, int]] = {}
    for label, answer in zip(expected, got, strict=True):
        row = out.setdefault(label, {})
        row[answer] = row.get(answer, 0) + 1
    return {label: dict(sorted(row.items())) for label, row in sorted(out.items())}


def _pictured(pairs: Sequence[tuple[dict[str, Any], str, str]]) -> tuple[tuple[str, str, str], ...]:
    return tuple((thumbnail(opened(i["image"], i["where"])), label, answer) for i, label, answer in pairs)
