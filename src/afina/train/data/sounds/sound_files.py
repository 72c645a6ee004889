"""Sounds as models take them: one channel, at the model's rate."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ....errors import DataError, RecipeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PLAYED_S, _PLAYED_HZ = 10, 16_000
"""As much of a sound as a page keeps, and at which rate: some 40 KB."""
INSTALL = "pip install 'afina[audio]'"


@dataclass(frozen=True)
class Heard:
    """A sound.

    Attributes:
        values: samples from -1 to 1, at the rate that was asked for.
        rate: that it was recorded at, in Hz.
        channels: that it had; they are averaged.
    """

    values: NDArray[np.float32]
    rate: int
    channels: int


def heard(source: str | bytes, where: str, rate: int) -> Heard:
    """A sound from a file or its bytes, resampled by a polyphase filter where it has another rate.

    Args:
        rate: to give it at, in Hz.

    Raises:
        DataError: it cannot be read, is empty, or holds something that is no number.
        RecipeError: soundfile or scipy is not installed.
    """
    import numpy as np

    values, found = _samples(source, where)
    mono = values.mean(1)
    if found != rate:
        common = math.gcd(found, rate)
        mono = _reader()[1](mono, rate // common, found // common)
    return Heard(np.ascontiguousarray(mono, dtype=np.float32), found, values.shape[1])


def recorded(source: str | bytes, where: str) -> tuple[float, int, int]:
    """Seconds, samples a second and channels of a sound.

    Raises:
        DataError: it cannot be read, is empty, or holds something that is no number.
        RecipeError: soundfile or scipy is not installed.
    """
    values, rate = _samples(source, where)
    return len(values) / rate, rate, values.shape[1]


def playable(source: str | bytes, where: str) -> str:
    """The first seconds of a sound as a `data:` URL that browsers play, with how it is called in messages.

    Raises:
        DataError: it cannot be read.
        RecipeError: soundfile or scipy is not installed.
    """
    soundfile, _ = _reader()
    values = heard(source, where, _PLAYED_HZ).values[: _PLAYED_S * _PLAYED_HZ]
    kind, subtype = ("MP3", "MPEG_LAYER_III") if "MP3" in soundfile.available_formats() else ("WAV", "PCM_16")
    made = io.BytesIO()
    soundfile.write(made, values, _PLAYED_HZ, format=kind, subtype=subtype)
    coded = base64.b64encode(made.getvalue()).decode()
    return f"data:audio/{'mpeg' if kind == 'MP3' else 'wav'};name={quote(where, safe='')};base64,{coded}"


def _samples(source: str | bytes, where: str) -> tuple[Any, int]:
    """Samples (count, channels) as they were recorded, and their rate."""
    import numpy as np

    soundfile, _ = _reader()
    try:
        values, found = soundfile.read(
            io.BytesIO(source) if isinstance(source, bytes) else source, dtype="float32", always_2d=True
        )
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError) as error:
        got = (str(error).strip().splitlines() or [type(error).__name__])[0][-160:]
        raise DataError("cannot read a sound", where=where, got=got) from error
    if not len(values):
        raise DataError("cannot read a sound", where=where, got="no samples in it")
    if not np.isfinite(values).all():
        raise DataError("cannot read a sound", where=where, got="samples that are no numbers")
    return values, int(found)


def _reader() -> tuple[Any, Any]:
    """What reads files, and what resamples.

    Raises:
        RecipeError: it is not installed.
    """
    try:
        import soundfile
        from scipy.signal import resample_poly
    except (ImportError, OSError) as error:  # OSError: its library is not there
        raise RecipeError("reading sounds needs soundfile and scipy", got=str(error).splitlines()[0][:160],
                          fix=INSTALL) from error  # fmt: skip
    return soundfile, resample_poly
