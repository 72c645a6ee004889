"""Word error rates of transcripts, by jiwer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ....errors import RecipeError
from ...answers.evaluate import share_right
from ...data.sounds.sound_files import INSTALL
from ...report.scores import Scores


def plain(text: str) -> str:
    """A text as it is compared: in small letters, without punctuation and what stands in brackets (Whisper's basic
    normaliser)."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return str(BasicTextNormalizer()(text)).strip()


def error_scores(
    loss: float | None, expected: Sequence[str], got: Sequence[str], samples: tuple[tuple[str, str, str], ...] = ()
) -> Scores:
    """How many words are wrong, missing or too many, in shares of the words that were said; and the share of rows
    without an error, with its interval.

    Raises:
        RecipeError: jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise RecipeError("word error rates need jiwer", fix=INSTALL) from error
    said, heard = [plain(text) for text in expected], [plain(text) for text in got]
    kept: dict[str, Any] = {"metric": "rows without an error", "majority": None, "samples": samples}
    return replace(share_right(loss, sum(map(str.__eq__, said, heard)), said),
                   word_errors=float(jiwer.wer(said, heard)), **kept)  # fmt: skip
