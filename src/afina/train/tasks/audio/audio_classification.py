"""One label for a sound: a fresh head on a model of sounds (wav2vec 2.0, AST, the encoder of Whisper)."""

from __future__ import annotations

from typing import Any, ClassVar

from ...base.sound_processor import SoundProcessor, load_sound_processor
from ...conversations.processor import Sounds
from ...data.encode import Data, Encoded
from ...data.prompts import Prompter
from ...data.readers.media_rows import SOUNDS, Medium
from ...data.rows import Rows
from ...data.sounds.sound_files import playable
from ...recipe.sections import DataSection, ModelSection, Recipe
from ...report.events import Reporter
from ..files.file_classes import FileClassification
from .shortened import shorten
from .sound_batches import SoundBatches, sound_items, values_of


class AudioClassification(FileClassification):
    """Sounds and labels."""

    name: ClassVar[str] = "audio_classification"
    loader: ClassVar[str] = "AutoModelForAudioClassification"
    columns: ClassVar[str] = "audio and label, or a folder of sounds for each label"
    reader_file: ClassVar[str] = "preprocessor_config.json"
    medium: ClassVar[str] = "sounds"
    of: ClassVar[Medium] = SOUNDS
    heads: ClassVar[tuple[str, ...]] = ("projector", "classifier")

    def reader(self, location: str, section: ModelSection, reporter: Reporter) -> Any:
        """The model's feature extractor."""
        return load_sound_processor(location, section.model_copy(update={"language": None}), writes=False)

    def loaded(self, model: Any, tokenizer: Any) -> None:
        """Let it take sounds as long as its processor gives."""
        shorten(model, tokenizer)

    def prompter(self, data: DataSection, tokenizer: Any) -> Prompter:
        """One that keeps the feature extractor."""
        return Prompter(data, tokenizer, Sounds(tokenizer))

    def file_items(self, rows: Rows, prompter: Prompter, *, checked: bool) -> Encoded:
        """Where each sound is; those that are too long are cut, and counted."""
        told = prompter.images.heard if prompter.images else lambda: None
        processor: Any = prompter.tokenizer
        return sound_items(rows, processor, prompter.ledger, told, checked=checked, whole=False)

    def shown(self, item: dict[str, Any]) -> str:
        """The sound, as a page plays it."""
        return playable(item["audio"], item["where"])

    def collator(self, tokenizer: Any) -> Any:
        """Reads sounds and lets the extractor make a batch of them."""
        return SoundBatches(tokenizer)

    def trainer(self, recipe: Recipe, model: Any, tokenizer: Any, data: Data, arguments: Any) -> Any:
        """Sounds are in the model's dtype."""
        out = super().trainer(recipe, model, tokenizer.whole, data, arguments)
        out.data_collator = SoundBatches(tokenizer, model.dtype)
        return out

    def probe(self, prompter: Prompter, text: str, device: Any) -> dict[str, Any]:
        """A second of noise that is drawn by the text."""
        return noise(prompter.tokenizer, text, device)


def noise(processor: Any, text: str, device: Any) -> dict[str, Any]:
    """A second of noise that is drawn by a text, as the model takes it."""
    import numpy as np

    assert isinstance(processor, SoundProcessor)
    drawn = np.random.default_rng(list(text.encode())).normal(0, 0.1, processor.rate).astype(np.float32)
    return {k: v.to(device) for k, v in values_of(processor, [drawn]).items()}
