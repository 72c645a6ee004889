"""Data sets of speech that eSpeak NG makes: the voices that are held out are none of those that are learnt from."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ....errors import DataError
from ...base.assets import locate
from ...report.events import Reporter
from ..readers.row_check import Row
from . import espeak

_PACKAGE = "package:espeakng-loader==0.2.4/espeakng_loader"
_TRAINED = ("m1", "m2", "m3", "m4", "m5", "m6", "f1", "f2", "f3", "Andy", "Alicia", "steph")
_HELD_OUT = ("m7", "m8", "f4", "f5", "Mario", "linda")
_WELSH = ("dim", "un", "dau", "tri", "pedwar", "pump", "chwech", "saith", "wyth", "naw")
_ENGLISH = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_ACCENTS = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-029")
_AT_ONCE = 4
"""Digits of a Welsh number."""


def welsh_numbers(work: Path, n_test: int, n_train: int, seed: int, reporter: Reporter) -> tuple[list[Row], Path]:
    """Rows of `audio` and `text`: four digits, read one by one in Welsh; held-out ones first. And what spoke them."""
    draw = random.Random(seed)
    numbers = draw.sample(range(10**_AT_ONCE), n_test + n_train)  # none comes twice
    rows: list[Row] = []
    sentences = []
    for index, number in enumerate(numbers):
        text = " ".join(_WELSH[int(digit)] for digit in f"{number:0{_AT_ONCE}}")
        rows.append({"audio": f"{number:0{_AT_ONCE}}.wav", "text": text})
        sentences.append((rows[-1]["audio"], text, *_voice(draw, ("cy",), index < n_test)))
    return rows, _spoken(work, sentences, reporter)


def english_digits(work: Path, n_test: int, n_train: int, seed: int, reporter: Reporter) -> tuple[list[Row], Path]:
    """Rows of `audio` and `label`: a digit in one of four English accents; held-out ones first. And what spoke them."""
    draw = random.Random(seed)
    rows: list[Row] = []
    sentences = []
    for index in range(n_test + n_train):
        digit = index % 10
        rows.append({"audio": f"{index}.wav", "label": str(digit)})
        sentences.append((rows[-1]["audio"], _ENGLISH[digit], *_voice(draw, _ACCENTS, index < n_test)))
    return rows, _spoken(work, sentences, reporter)


def _voice(draw: random.Random, accents: Sequence[str], held_out: bool) -> tuple[str, int, int]:
    """A voice, words a minute, and a pitch."""
    name = draw.choice(_HELD_OUT if held_out else _TRAINED)
    return f"{draw.choice(accents)}+{name}", draw.randint(120, 190), draw.randint(25, 75)


def _spoken(work: Path, sentences: Sequence[tuple[str, str, str, int, int]], reporter: Reporter) -> Path:
    """Let the sentences be spoken into `work`.

    Raises:
        DataError: the library cannot be used on this machine.
    """
    package = locate(_PACKAGE, reporter)
    given = json.dumps({"package": str(package), "folder": str(work), "sentences": sentences})
    done = subprocess.run([sys.executable, espeak.__file__], input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DataError("eSpeak NG cannot speak here", where=package, got=said[:200])
    return package / "__init__.py"
