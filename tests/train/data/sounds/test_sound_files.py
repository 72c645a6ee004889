from __future__ import annotations

import numpy as np
import pytest
import soundfile

from afina.errors import DataError
from afina.train.data.sounds.sound_files import heard

TONE = np.sin(np.arange(8000) * 2 * np.pi * 440 / 8000).astype("float32") / 2


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff", "a.au"])
def test_every_kind_of_file_is_heard(name, tmp_path):
    soundfile.write(tmp_path / name, TONE, 8000)
    found = heard(str(tmp_path / name), "", 8000)
    start = next(i for i in range(2000) if abs(found.values[i]) > 0.2) if name.endswith("mp3") else 0
    loudest = np.fft.rfft(found.values[start : start + 8000 - 2000]).__abs__().argmax() * 8000 / 6000
    assert loudest == pytest.approx(440, abs=2)
    assert (found.rate, found.channels, found.values.dtype) == (8000, 1, np.float32)


def test_channels_are_averaged_and_other_rates_resampled(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([TONE, -TONE / 2], 1), 8000, subtype="FLOAT")
    found = heard((tmp_path / "a.wav").read_bytes(), "", 16000)
    assert (found.rate, found.channels, len(found.values)) == (8000, 2, 16000)
    theirs = np.sin(np.arange(16000) * 2 * np.pi * 440 / 16000) / 8
    assert np.abs(found.values - theirs)[200:-200].max() < 1e-3
    assert np.abs(theirs).max() > 0.1


@pytest.mark.parametrize("what", ["text", "empty", "nothing", "no numbers"])
def test_what_cannot_be_heard_is_told(what, tmp_path):
    file = tmp_path / "a.wav"
    if what == "text":
        file.write_text("hello")
    elif what == "empty":
        soundfile.write(file, TONE[:0], 8000)
    elif what == "no numbers":
        soundfile.write(file, np.full(10, np.nan, "float32"), 8000, subtype="FLOAT")
    with pytest.raises(DataError, match="row 3: cannot read a sound") as told:
        heard(str(file), "row 3", 8000)
    assert len(str(told.value).splitlines()) <= 4
