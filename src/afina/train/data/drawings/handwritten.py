"""Handwritten digits as images with labels, with captions, and as a subject that nobody drew before."""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from pathlib import Path

from ..readers.row_check import Row

_SIDE, _SUBJECT = 8, 8
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def digit_rows(work: Path, source: Path) -> list[Row]:
    """The digits of scikit-learn's file as images in `work`, each with its label."""
    from PIL import Image

    rows: list[Row] = []
    for number, line in enumerate(gzip.decompress(source.read_bytes()).decode().split()):
        *shades, digit = map(int, map(float, line.split(",")))
        name, values = f"{number}.png", bytes(round(255 * (16 - shade) / 16) for shade in shades)
        (work / name).write_bytes(_png(Image.frombytes("L", (_SIDE, _SIDE), values)))
        rows.append({"image": name, "label": str(digit)})
    return rows


def captioned(rows: Sequence[Row]) -> list[Row]:
    """The digits with a caption each, in place of their labels."""
    return [{"image": row["image"], "text": f"a handwritten {NAMES[int(row['label'])]}"} for row in rows]


def night_sevens(work: Path, rows: Sequence[Row]) -> list[Row]:
    """The first sevens among rows, written anew in white on black."""
    from PIL import Image, ImageOps

    names = [str(row["image"]) for row in rows if row["label"] == "7"][:_SUBJECT]
    for name in names:
        (work / f"night-{name}").write_bytes(_png(ImageOps.invert(Image.open(work / name))))
    return [{"image": f"night-{name}"} for name in names]


def _png(image: object) -> bytes:
    made = io.BytesIO()
    image.save(made, "PNG")  # type: ignore[attr-defined]
    return made.getvalue()
