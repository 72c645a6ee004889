"""Rows of image files: a folder for each class, a folder of images, or one image."""

from __future__ import annotations

from pathlib import Path

from ....errors import DataError
from .row_check import Row

KINDS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
"""Endings of the images that are read."""
_NOBODYS = frozenset({"thumbs.db", "desktop.ini"})
"""What file managers leave in folders."""


def is_image(path: Path) -> bool:
    """Whether a file's name ends as an image's does."""
    return path.suffix.lower() in KINDS


def image_rows(path: Path) -> list[Row]:
    """Rows of `image`, the file's path within `path`, and `label`, its folder's name; without `label` where the images
    stand in no folders. Empty where there is no image at all.

    Raises:
        DataError: a class has no images, or something else stands among them.
    """
    if path.is_file():
        return [{"image": path.name}] if is_image(path) else []
    inside = _entries(path)
    folders, files = [p for p in inside if p.is_dir()], [p for p in inside if p.is_file()]
    if not folders:
        return [{"image": name} for name in _images(files)] if any(map(is_image, files)) else []
    found = {folder.name: _images(_entries(folder)) for folder in folders}
    if not any(found.values()):
        return []
    empty = next((name for name, images in found.items() if not images), None)
    if empty is not None:
        raise DataError("a class has no images", where=path / empty, expected=", ".join(sorted(KINDS)),
                        fix="take the folder out, or put its images there")  # fmt: skip
    if files:
        raise DataError("a file beside the folders of classes", where=files[0], fix="put it into its class's folder")
    return [{"image": f"{name}/{image}", "label": name} for name, images in found.items() for image in images]


def _entries(folder: Path) -> list[Path]:
    shown = (p for p in folder.iterdir() if not p.name.startswith(".") and p.name.lower() not in _NOBODYS)
    return sorted(shown)


def _images(files: list[Path]) -> list[str]:
    """The names of image files.

    Raises:
        DataError: one is none.
    """
    other = next((p for p in files if not is_image(p)), None)
    if other is not None:
        raise DataError("not an image that is read", where=other, got=other.suffix or "no ending",
                        expected=", ".join(sorted(KINDS)), fix="take it out, or save it as PNG")  # fmt: skip
    return [p.name for p in files]
