"""A model's own processor of sounds: what makes numbers of samples, and of a model that writes, its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, RecipeError
from ..recipe.sections import ModelSection

LONGEST = 30.0
"""Seconds of a sound, where neither the recipe nor the model says."""
_STEP = 0.01
"""Seconds between columns of a spectrogram."""


@dataclass(frozen=True)
class SoundProcessor:
    """What reads sounds, and maybe writes texts.

    Attributes:
        whole: transformers' processor, or its feature extractor where no text is written.
        extractor: of the two, what takes samples.
        tokenizer: what the model writes with, or None.
    """

    whole: Any
    extractor: Any
    tokenizer: Any = None

    @property
    def rate(self) -> int:
        """Samples a second."""
        return int(self.extractor.sampling_rate)

    @property
    def seconds(self) -> float:
        """The longest sound."""
        if self.spectrogram:
            return float(self.extractor.max_length * _STEP)
        name = "chunk_length" if self.fixed else "seconds"
        return float(getattr(self.extractor, name, LONGEST))

    @property
    def spectrogram(self) -> bool:
        """Whether a model's positions are those of a spectrogram of one size (AST)."""
        return hasattr(self.extractor, "num_mel_bins") and hasattr(self.extractor, "max_length")

    @property
    def fixed(self) -> bool:
        """Whether every sound is filled up with silence to the longest (Whisper)."""
        return hasattr(self.extractor, "chunk_length")

    @property
    def spells(self) -> bool:
        """Whether the tokenizer is of letters that a model hears one by one (CTC)."""
        return hasattr(self.tokenizer, "word_delimiter_token")

    @property
    def told_languages(self) -> bool:
        """Whether the tokenizer has a token for each of many languages."""
        return self.tokenizer is not None and "<|cy|>" in self.tokenizer.get_vocab()

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write it as transformers reads it."""
        self.whole.save_pretrained(folder, **options)


def load_sound_processor(location: str, section: ModelSection, *, writes: bool) -> SoundProcessor:
    """The processor, for sounds as long as `model.audio_seconds` says.

    Args:
        writes: whether the model writes texts.

    Raises:
        CheckpointError: the model has none.
        RecipeError: its model knows no such language, or takes sounds of its own length only.
    """
    from transformers import AutoFeatureExtractor, AutoProcessor

    kind = AutoProcessor if writes else AutoFeatureExtractor
    try:
        whole = kind.from_pretrained(location, revision=section.revision or "main")
    except (OSError, ValueError, ImportError, TypeError, AttributeError, KeyError) as error:
        got = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise CheckpointError("cannot load the processor of sounds", where=location, got=got,
                              expected=f"a model of {'speech' if writes else 'sounds'}") from error  # fmt: skip
    extractor = getattr(whole, "feature_extractor", None) if writes else whole
    if not hasattr(extractor, "sampling_rate") or (writes and not hasattr(whole, "tokenizer")):
        raise CheckpointError("the model hears no speech", where=location, got=type(whole).__name__,
                              expected="a processor of sounds and texts" if writes else None)  # fmt: skip
    out = SoundProcessor(whole, extractor, getattr(whole, "tokenizer", None))
    if section.audio_seconds is not None:
        _take(out, section.audio_seconds)
    if writes:
        _speak(out, section)
    return out


def _take(processor: SoundProcessor, seconds: float) -> None:
    """Let a processor give sounds of so many seconds.

    Raises:
        RecipeError: there can be none.
    """
    extractor = processor.extractor
    if processor.spectrogram:
        raise RecipeError("the model takes sounds of its own length only", where="model.audio_seconds", got=seconds,
                          fix="leave it out")  # fmt: skip
    if not processor.fixed:
        extractor.seconds = seconds
        return
    if seconds > extractor.chunk_length or seconds != int(seconds):
        raise RecipeError("the model takes whole seconds, up to its own number", where="model.audio_seconds",
                          got=seconds, expected=f"1 to {extractor.chunk_length}")  # fmt: skip
    extractor.chunk_length = int(seconds)
    extractor.n_samples = extractor.chunk_length * extractor.sampling_rate
    extractor.nb_max_frames = extractor.n_samples // extractor.hop_length


def _speak(processor: SoundProcessor, section: ModelSection) -> None:
    """Tell a tokenizer which language is spoken and what is to be written, where it has tokens for that.

    Raises:
        RecipeError: it has none for the language.
    """
    tokenizer = processor.tokenizer
    language = section.language or getattr(tokenizer, "language", None)
    if language is None:
        return
    if not processor.told_languages:
        raise RecipeError("the model has no tokens for languages", where="model.language", got=language,
                          fix="leave it out")  # fmt: skip
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    code = TO_LANGUAGE_CODE.get(language.lower(), language.lower())
    if code not in LANGUAGES or f"<|{code}|>" not in tokenizer.get_vocab():
        raise RecipeError("the model knows no such language", where="model.language", got=language,
                          expected="a name or code that Whisper has, e.g. english, en")  # fmt: skip
    tokenizer.set_prefix_tokens(language=language.lower(), task=section.speech, predict_timestamps=False)
