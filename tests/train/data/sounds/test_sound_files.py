from __future__ import annotations

import numpy as np
import pytest
import soundfile

from afina.errors import DataError
from afina.train.data.sounds.sound_files import heard, playable

from ...tiny_sounds import tone

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


def test_what_a_page_plays_is_the_beginning_of_the_sound_under_its_name():
    import base64
    import re
    from urllib.parse import unquote

    url = playable(tone(1, seconds=11, channels=2), 'rows:1 (a/"<1>.wav)')
    kind, name, coded = re.fullmatch(
        r"data:audio/(mpeg|wav);name=([A-Za-z0-9%._~-]*);base64,([A-Za-z0-9+/=]+)", url
    ).groups()
    assert unquote(name) == 'rows:1 (a/"<1>.wav)'
    again = heard(base64.b64decode(coded), "", 16_000)
    assert (again.rate, again.channels) == (16_000, 1)
    assert len(again.values) / 16_000 == pytest.approx(10, abs=0.2)
    strongest = np.abs(np.fft.rfft(again.values)).argmax() * again.rate / len(again.values)
    assert strongest == pytest.approx(1803, abs=5)
    assert kind == "wav" or len(coded) < 80_000
