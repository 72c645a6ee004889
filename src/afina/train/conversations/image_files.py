"""Images where rows name them: found beside the rows, and read."""

from __future__ import annotations

import base64
import binascii
import io
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from .images import handed_out

if TYPE_CHECKING:
    from PIL.Image import Image

    from .messages import Message

_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_LONGEST_NAME, _LEAST_IMAGE = 1024, 64
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, zlib.error)
"""What Pillow says of a damaged file, by its kind and place."""


def with_images(messages: Sequence[Message], column: Any, folder: Path, where: str) -> list[Message]:
    """Messages with a row's images, as they can be read from anywhere.

    Args:
        column: the row's own images, if it has some beside its messages: one, or a list.
        folder: what paths count from.

    Raises:
        DataError: an image is not there, or there are not as many as places.
    """
    given = column if isinstance(column, list) else [] if column is None else [column]
    out = handed_out(messages, given, where)
    return [{**m, "images": [found_at(i, folder, where) for i in m["images"]]} if "images" in m else m for m in out]


def found_at(source: Any, folder: Path, where: str, word: str = "image") -> Any:
    """An image's file, or its bytes, as they can be used from anywhere; paths count from `folder`.

    Args:
        word: what it is, where it is no image.

    Raises:
        DataError: there is no such file, or it lies elsewhere than on this machine.
    """
    if isinstance(source, Mapping):
        inner = next((source[key] for key in ("bytes", "path", "url", "base64") if source.get(key) is not None), None)
        return found_at(inner, folder, where, word)
    if not isinstance(source, str):
        if not isinstance(source, bytes):
            raise DataError(f"not {a(word)}", where=where, got=type(source).__name__,
                            expected="a path, a data: URL, bytes")  # fmt: skip
        return source
    if source.startswith(("http://", "https://")):
        raise DataError(f"{word}s are read from files, and none is fetched", where=where, got=source,
                        fix="download it, and name the file")  # fmt: skip
    if source.startswith("data:"):
        return _decoded(source.partition("base64,")[2], where, word)
    path = folder / Path(source.removeprefix("file://")).expanduser()
    if len(source) <= _LONGEST_NAME and path.is_file():
        return str(path)
    if len(source) % 4 == 0 and len(source) >= _LEAST_IMAGE and _BASE64.fullmatch(source):
        return _decoded(source, where, word)
    raise DataError(f"no such {word}", where=where, got=str(path)[:200])


def a(word: str) -> str:
    """A word with its article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _decoded(text: str, where: str, word: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise DataError(f"not {a(word)} in base64", where=where, got=str(error)) from error


def pictured(source: str | bytes, where: str) -> tuple[tuple[int, int], str]:
    """Width and height of an image as it is used, and the mode (RGB, L, ...) that it is stored in.

    Raises:
        DataError: it cannot be used.
    """
    from PIL import Image

    size = opened(source, where).size
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return size, image.mode


def opened(source: str | bytes, where: str) -> Image:
    """An image in colours, turned as its camera says, as transformers' `load_image` gives it; of a camera's several
    (MPO) the first.

    Raises:
        DataError: it cannot be read, moves, or has more than 8 bits a colour.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.format == "GIF" or (image.format != "MPO" and getattr(image, "n_frames", 1) > 1):
                raise DataError("not an image that stands still", where=where, got=f"{image.format}, "
                                f"{getattr(image, 'n_frames', 1)} frames", fix="save a frame as PNG")  # fmt: skip
            if image.mode.startswith(("I", "F")):
                raise DataError("an image of more than 8 bits a colour", where=where, got=f"mode {image.mode}",
                                fix="scale its values to 0..255, and save it with 8 bits")  # fmt: skip
            return ImageOps.exif_transpose(image).convert("RGB")
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError("an image of too many pixels", where=where, got=str(error)[:160]) from error
    except _DAMAGED as error:
        got = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise DataError("cannot read an image", where=where, got=got) from error


def thumbnail(image: Image, side: int = 48) -> str:
    """A small PNG of an image as a `data:` URL; small ones are made larger, so that their pixels can be seen."""
    from PIL import Image

    scale = side / max(image.size)
    width, height = (max(1, round(n * scale)) for n in image.size)
    small = image.resize((width, height), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)
    made = io.BytesIO()
    small.save(made, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(made.getvalue()).decode()}"


_PATHS = ("image", "images", "image_url", "audio", "path", "url")
"""Keys of rows and of parts of messages under which an image's or a sound's file may stand."""


def anchored(value: Any, folder: Path, key: str = "") -> Any:
    """A row that means the same wherever it is written: paths of its images are absolute, bytes in base64."""
    if isinstance(value, Mapping):
        return {name: anchored(inner, folder, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [anchored(inner, folder, key) for inner in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    path = _file(value, folder, key)
    return value if path is None else str(path)


def image_paths(value: Any, folder: Path, key: str = "") -> Iterator[Path]:
    """The files of a row's images."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from image_paths(inner, folder, name)
    for inner in value if isinstance(value, list) else ():
        yield from image_paths(inner, folder, key)
    path = _file(value, folder, key)
    if path is not None:
        yield path


def _file(value: Any, folder: Path, key: str) -> Path | None:
    if key not in _PATHS or not isinstance(value, str) or len(value) > _LONGEST_NAME:
        return None
    path = folder / value.removeprefix("file://")
    return path if path.is_file() else None
