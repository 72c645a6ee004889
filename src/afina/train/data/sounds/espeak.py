"""A program of its own that lets eSpeak NG speak sentences into WAV files, as its standard input says.

The library draws its noise by the clock, and keeps a state from one sentence to the next: with a seed, all sentences in
their order in one fresh process sound the same every time. It imports nothing of afina.
"""

from __future__ import annotations

import ctypes
import json
import sys
import wave
from pathlib import Path
from typing import Any

_RETRIEVE, _UTF8, _AT_CHARACTER = 1, 1, 1
_SPEED, _PITCH = 1, 3
_LIBRARIES = {"win32": "espeak-ng.dll", "darwin": "libespeak-ng.dylib"}


def speak(package: Path, folder: Path, sentences: list[tuple[str, str, str, int, int]]) -> None:
    """Write every sentence.

    Args:
        package: the folder with the library and its data.
        folder: where files go.
        sentences: name of the file, text, voice, words a minute, pitch from 0 to 99.
    """
    library = ctypes.CDLL(str(package / _LIBRARIES.get(sys.platform, "libespeak-ng.so")))
    pieces: list[bytes] = []

    def take(samples: Any, count: int, events: object) -> int:
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    rate = library.espeak_Initialize(_RETRIEVE, 0, str(package).encode(), 0)
    if rate <= 0:
        sys.exit(f"eSpeak NG cannot begin ({rate})")
    heard = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)(take)
    library.espeak_SetSynthCallback(heard)
    for number, (name, text, voice, speed, pitch) in enumerate(sentences):
        pieces.clear()
        library.espeak_ng_SetRandSeed(ctypes.c_long(number))
        if library.espeak_SetVoiceByName(voice.encode()):
            sys.exit(f"eSpeak NG has no voice {voice}")
        library.espeak_SetParameter(_SPEED, speed, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        said = text.encode()
        library.espeak_Synth(said, len(said) + 1, 0, _AT_CHARACTER, 0, _UTF8, None, None)
        library.espeak_Synchronize()
        with wave.open(str(folder / name), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(b"".join(pieces))


if __name__ == "__main__":
    given = json.load(sys.stdin)
    speak(Path(given["package"]), Path(given["folder"]), given["sentences"])
