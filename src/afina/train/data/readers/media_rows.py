"""Rows of image or sound files: a folder for each class, a folder of files, or one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ....errors import DataError
from ...conversations.image_files import a
from .row_check import Row, decoded


@dataclass(frozen=True)
class Medium:
    """A kind of files that are rows.

    Attributes:
        column: what their column is called.
        word: one of them, in words.
        endings: of the files that are read.
        better: what others are to be saved as.
    """

    column: str
    word: str
    endings: frozenset[str]
    better: str

    def fits(self, path: Path) -> bool:
        """Whether a file's name ends as one of this kind does."""
        return path.suffix.lower() in self.endings


IMAGES = Medium(
    "image", "image", frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}), "PNG"
)
SOUNDS = Medium("audio", "sound", frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".au"}), "WAV or FLAC")
MEDIA = (IMAGES, SOUNDS)
_NOBODYS = frozenset({"thumbs.db", "desktop.ini"})
"""What file managers leave in folders."""


def is_medium(path: Path) -> bool:
    """Whether a file's name ends as that of an image or a sound does."""
    return any(medium.fits(path) for medium in MEDIA)


def captions(folder: Path) -> dict[str, Path]:
    """Name of an image or sound in a folder -> the text file of the same name beside it."""
    texts = {path.stem: path for path in folder.glob("*.txt")}
    return {p.name: texts[p.stem] for p in sorted(folder.iterdir()) if p.stem in texts and is_medium(p)}


def of_metadata(row: Row) -> Row:
    """A row of a `metadata` file, whose `file_name` is the image or sound that it tells of."""
    name = row.get("file_name")
    medium = next((m for m in MEDIA if isinstance(name, str) and m.fits(Path(name))), None)
    if medium is None or medium.column in row:
        return row
    return {medium.column: name, **{key: value for key, value in row.items() if key != "file_name"}}


def media_rows(path: Path) -> list[Row]:
    """Rows of `image` or `audio`, the file's path within `path`, and `label`, its folder's name; without `label` where
    the files stand in no folders, and with `text` where a text file stands beside each. Empty where there is no image
    or sound at all.

    Raises:
        DataError: a class has no files, or something else stands among them.
    """
    found = (_rows(path, medium) for medium in MEDIA)
    return next((rows for rows in found if rows), [])


def _rows(path: Path, medium: Medium) -> list[Row]:
    if path.is_file():
        return [{medium.column: path.name}] if medium.fits(path) else []
    inside = _entries(path)
    folders, files = [p for p in inside if p.is_dir()], [p for p in inside if p.is_file()]
    if not folders:
        told = captions(path)
        files = [p for p in files if p not in told.values()]
        names = _names(files, medium) if any(map(medium.fits, files)) else []
        return [{medium.column: name, **({"text": _caption(told[name])} if name in told else {})} for name in names]
    held = {folder: _entries(folder) for folder in folders}
    if not any(medium.fits(p) for entries in held.values() for p in entries):
        return []
    found = {folder.name: _names(entries, medium) for folder, entries in held.items()}
    empty = next((name for name, names in found.items() if not names), None)
    if empty is not None:
        raise DataError(f"a class has no {medium.word}s", where=path / empty,
                        expected=", ".join(sorted(medium.endings)),
                        fix=f"take the folder out, or put its {medium.word}s there")  # fmt: skip
    if files:
        raise DataError("a file beside the folders of classes", where=files[0], fix="put it into its class's folder")
    return [{medium.column: f"{label}/{name}", "label": label} for label, names in found.items() for name in names]


def _caption(path: Path) -> str:
    """A file's text, in one line.

    Raises:
        DataError: it is not UTF-8.
    """
    return " ".join(decoded(path).split())


def _entries(folder: Path) -> list[Path]:
    shown = (p for p in folder.iterdir() if not p.name.startswith(".") and p.name.lower() not in _NOBODYS)
    return sorted(shown)


def _names(files: list[Path], medium: Medium) -> list[str]:
    """The names of a kind's files.

    Raises:
        DataError: one is of another kind.
    """
    other = next((p for p in files if not medium.fits(p)), None)
    if other is not None:
        raise DataError(f"not {a(medium.word)} that is read", where=other, got=other.suffix or "no ending",
                        expected=", ".join(sorted(medium.endings)),
                        fix=f"take it out, or save it as {medium.better}")  # fmt: skip
    return [p.name for p in files]
