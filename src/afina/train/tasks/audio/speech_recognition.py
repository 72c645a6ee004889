"""What is said in a sound, written down: a model that writes (Whisper), or one that spells (wav2vec 2.0 with CTC)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ....errors import DataError, RecipeError
from ...answers.row_losses import TellsRows
from ...base.sound_processor import SoundProcessor, load_sound_processor
from ...conversations.image_files import found_at
from ...conversations.processor import Sounds
from ...data.encode import Data, Encoded
from ...data.labels import task_numbers
from ...data.prompts import Prompter
from ...data.readers.media_rows import SOUNDS
from ...data.rows import Rows
from ...data.sounds.sound_files import playable
from ...recipe.sections import DataSection, ModelSection, Recipe
from ...report.events import Reporter, Span
from ...report.scores import Scores
from ..base import Job, Predictions, Task, Trained
from ..files.file_items import file_item
from .audio_classification import noise
from .shortened import shorten
from .sound_batches import SoundBatches, sound_items
from .speech_batches import SpeechBatches
from .spoken_losses import spoken_losses
from .word_errors import error_scores, plain
from .writing import written

_SHOWN = 6


class SpeechRecognition(Task, TellsRows):
    """Sounds and what is said in them."""

    name: ClassVar[str] = "speech_recognition"
    loader: ClassVar[str] = "AutoModelForSpeechSeq2Seq"
    columns: ClassVar[str] = "audio and text"
    groups: ClassVar[bool] = False
    reader_file: ClassVar[str] = "processor_config.json"
    medium: ClassVar[str] = "sounds"
    writes: ClassVar[bool] = True

    def reader(self, location: str, section: ModelSection, reporter: Reporter) -> Any:
        """The model's feature extractor and tokenizer."""
        return load_sound_processor(location, section, writes=True)

    def model_class(self, tokenizer: Any) -> str:
        """One that spells has another class."""
        return "AutoModelForCTC" if tokenizer.spells else self.loader

    def loaded(self, model: Any, tokenizer: Any) -> None:
        """Let it take sounds as long as its processor gives, and tell it what its tokenizer is told.

        Raises:
            RecipeError: it has to be told which language it hears, and is not.
        """
        shorten(model, tokenizer)
        settings = getattr(model, "generation_config", None)
        language = getattr(tokenizer.tokenizer, "language", None)
        if language is None and tokenizer.told_languages:
            raise RecipeError("the model hears many languages, and is told which", where="model.language",
                              expected="the language of the sounds, e.g. english")  # fmt: skip
        if settings is not None and language is not None:
            settings.language, settings.task = language, tokenizer.tokenizer.task

    def prompter(self, data: DataSection, tokenizer: Any) -> Prompter:
        """One that keeps the processor."""
        return Prompter(data, tokenizer, Sounds(tokenizer))

    def encode(self, rows: Rows, prompter: Prompter, labels: list[str] | None, vocab_size: int) -> Encoded:
        """Where each sound is, and the tokens of its text.

        `prefix` is what a model that writes is told before it does: language and task; the loss is not taken on it.
        Sounds longer than the model takes are left out: what is said in a part of one is not known.

        Raises:
            DataError: a sound cannot be read, or a row has no text.
        """
        processor: Any = prompter.tokenizer
        told = prompter.images.heard if prompter.images else lambda: None
        found = sound_items(rows, processor, prompter.ledger, told, checked=True, whole=True)
        out, limit = Encoded(rows=rows), min(prompter.data.max_length, processor.tokenizer.model_max_length)
        for index, item in zip(found.source, found.items, strict=True):
            text = said(rows, index, prompter.data.text_column)
            prefix, ids = _tokens(processor, text)
            if processor.tokenizer.unk_token_id in ids and processor.spells:
                prompter.ledger.told["texts with letters that the model does not have"] += 1
            if len(prefix) + len(ids) > limit:
                prompter.ledger.told[f"texts of more than {limit} tokens, which are left out with their sounds"] += 1
                continue
            out.items.append({**item, "prefix": prefix, "labels": ids})
            out.source.append(index)
        return out

    def rendered(self, item: dict[str, Any], tokenizer: Any, labels: list[str] | None) -> list[Span]:
        """The sound's file, what the model is told, and what is said."""
        write = tokenizer.tokenizer.decode
        told, text = (str(write(item[key], **_plainly(tokenizer))) for key in ("prefix", "labels"))
        return [Span(f"{item['where']} {told}", False), Span(text, True)]

    def collator(self, tokenizer: Any) -> Any:
        """Reads sounds, and pads texts."""
        return SpeechBatches(SoundBatches(tokenizer))

    def arguments(self, recipe: Recipe, work: Path, learning_rate: float) -> Any:
        """The trainer's settings; sounds have no tokens to count."""
        out = super().arguments(recipe, work, learning_rate)
        out.include_num_input_tokens_seen = "no"
        return out

    def trainer(self, recipe: Recipe, model: Any, tokenizer: Any, data: Data, arguments: Any) -> Any:
        """Sounds are in the model's dtype.

        Raises:
            DataError: a text has more letters than a model that spells hears moments in its sound.
        """
        if tokenizer.spells:
            for part in (data.train, data.held_out):
                _check_moments(part, model)
        out = super().trainer(recipe, model, tokenizer.whole, data, arguments)
        out.data_collator = SpeechBatches(SoundBatches(tokenizer, model.dtype))
        return out

    def row_losses(self, trainer: Any, batch: Mapping[str, Any], outputs: Sequence[Any]) -> Any:
        """Of each text, as the model's own loss has it."""
        spells = not hasattr(outputs[0], "encoder_last_hidden_state")
        return spoken_losses(trainer.model, batch, outputs[0].logits, spells)

    def score(self, job: Job) -> Scores:
        """Held-out loss, word error rate, and the share of rows without an error."""
        held_out, rows = job.data.held_out, job.data.split.held_out
        assert held_out is not None
        assert rows is not None
        loss = float(job.trainer.evaluate(held_out)["eval_loss"])
        expected = [said(rows, i, job.recipe.data.text_column) for i in held_out.source]
        got = self._written(job)
        shown = list(zip(held_out.items, expected, got, strict=True))[:_SHOWN]
        samples = tuple((playable(item["audio"], item["where"]), e, g) for item, e, g in shown)
        return error_scores(loss, expected, got, samples)

    def items_right(self, job: Job) -> list[float]:
        """1 where a row is written without an error, else 0."""
        held_out, rows = job.data.held_out, job.data.split.held_out
        assert held_out is not None
        assert rows is not None
        expected = (said(rows, i, job.recipe.data.text_column) for i in held_out.source)
        return [float(plain(e) == plain(g)) for e, g in zip(expected, self._written(job), strict=True)]

    def _written(self, job: Job) -> list[str]:
        assert job.data.held_out is not None
        evaluation, items = job.recipe.evaluation, job.data.held_out.items
        return written(
            job.trainer.model, job.prompter.tokenizer, items, evaluation.batch_size, evaluation.max_new_tokens,
            job.reporter, f"writing ({job.stage})",
        )  # fmt: skip

    def told(self, trained: Trained, text: str, max_new_tokens: int) -> str:
        """What is said in a file."""
        item = {"audio": found_at(text.strip(), Path(), "the message", "sound"), "where": text.strip()}
        numbers = trained.task_numbers(1)
        items = [{**item, "task_ids": numbers[0]} if numbers else item]
        (out,) = written(trained.model, trained.tokenizer, items, 1, max_new_tokens, Reporter(), "", cut=True)
        return out

    def probe(self, prompter: Prompter, text: str, device: Any) -> dict[str, Any]:
        """A second of noise that is drawn by the text, and the text as what is written so far."""
        import torch

        processor: Any = prompter.tokenizer
        out = noise(processor, text, device)
        if not processor.spells:
            ids = [i for part in _tokens(processor, text) for i in part][:16]
            out["decoder_input_ids"] = torch.tensor([ids], device=device)
        return out

    def check_rows(self, rows: Rows, prompter: Prompter) -> None:
        """Each names a sound that is there."""
        column = prompter.data.text_column
        told = all(column in row for row in rows.values)
        for index in range(len(rows)):
            file_item(rows, index, SOUNDS)
            if told:
                said(rows, index, column)
        task_numbers(rows, prompter.data.task_column)

    def predict(
        self, trained: Trained, rows: Rows, reporter: Reporter, batch_size: int, max_new_tokens: int | None
    ) -> Predictions:
        """A column `prediction` with what is said; of a sound that is too long, in its beginning."""
        data, processor = trained.recipe.data, trained.tokenizer
        prompter = trained.prompter
        found = sound_items(rows, processor, prompter.ledger, lambda: None, checked=True, whole=False)
        for line in prompter.ledger.lines:
            reporter.note(line)
        if found.truncated:
            reporter.warn(f"{found.truncated} sounds are longer than the model takes: their beginnings were heard")
        for item, number in zip(found.items, task_numbers(rows, data.task_column) or (), strict=False):
            item["task_ids"] = number
        limit = max_new_tokens or trained.recipe.evaluation.max_new_tokens
        got = written(trained.model, processor, found.items, batch_size, limit, reporter, "predicting")
        out = [{**row, "prediction": text} for row, text in zip(rows.values, got, strict=True)]
        if not all(data.text_column in row for row in rows.values):
            return Predictions(out)
        return Predictions(out, error_scores(None, [said(rows, i, data.text_column) for i in range(len(rows))], got))


def _tokens(processor: SoundProcessor, text: str) -> tuple[list[int], list[int]]:
    """What a model is told before it writes, and the text's tokens with the one that ends it."""
    tokenizer = processor.tokenizer
    if processor.spells:
        return [], list(tokenizer(text).input_ids)
    prefix = list(tokenizer.prefix_tokens)
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    return prefix, [*ids, tokenizer.eos_token_id]


def _plainly(processor: SoundProcessor) -> dict[str, Any]:
    """How labels are decoded: letter by letter as they stand, also where one comes twice."""
    return {"group_tokens": False} if processor.spells else {}


def said(rows: Rows, index: int, column: str) -> str:
    """What is said in a row's sound.

    Raises:
        DataError: the row lacks it, or it is empty.
    """
    text = rows.text(index, column)
    if not plain(text):
        raise DataError("nothing is said in a row", where=rows.where(index), got=repr(text),
                        fix="take the row out")  # fmt: skip
    return text


def _check_moments(part: Encoded | None, model: Any) -> None:
    """Refuse texts that cannot be spelt in the time of their sounds.

    Raises:
        DataError: names the first.
    """
    import torch

    items = part.items if part is not None else []
    heard = model.get_base_model() if hasattr(model, "get_base_model") else model
    for item in items:
        moments = int(heard._get_feat_extract_output_lengths(torch.tensor(item["samples"])))
        ids = item["labels"]
        needed = len(ids) + sum(a == b for a, b in itertools.pairwise(ids))
        if needed > moments:
            raise DataError("a text is too long for its sound", where=item["where"], got=f"{needed} letters",
                            expected=f"at most {moments}, so many moments the model hears")  # fmt: skip
