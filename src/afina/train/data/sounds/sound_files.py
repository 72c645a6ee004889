"""Sounds as models take them: one channel, at the model's rate."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ....errors import DataError, RecipeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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

    soundfile, resample = _reader()
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
    mono = values.mean(1)
    if found != rate:
        common = math.gcd(found, rate)
        mono = resample(mono, rate // common, found // common)
    return Heard(np.ascontiguousarray(mono, dtype=np.float32), found, values.shape[1])


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
