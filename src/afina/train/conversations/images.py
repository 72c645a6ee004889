"""Images in messages: where they stand in the text, and which ones.

A message's text has `PLACE` where an image stands, and its key `images` has what stands there: a path, a `data:` URL,
bytes, a mapping with one of these, or None for the row's next one (columns `image`, `images`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import DataError

PLACE = "\ue0f2"
"""Stands for an image in a message's text; a character that no data and no template has."""
_NAMED = "<image>"
"""How texts of rows that have their images in a column say where they belong (LLaVA, ShareGPT)."""
_SOURCES = ("image", "image_url", "path", "url", "base64", "bytes")


def image_in(part: Any) -> tuple[bool, Any]:
    """Whether a part of content is an image, and what it names; None where it leaves that to a column."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("image", "image_url", "input_image"):
        return False, None
    found = next((part[key] for key in _SOURCES if part.get(key) is not None), None)
    return True, found.get("url") if kind == "image_url" and isinstance(found, Mapping) else found


def images_of(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """All images of messages, in their order."""
    return [image for message in messages for image in message.get("images", ())]


def parts_of(text: str) -> list[dict[str, str]]:
    """A message's text as templates of models with images take it."""
    first, *rest = text.split(PLACE)
    out = [{"type": "text", "text": first}] * (bool(first) or not rest)
    for piece in rest:
        out += [{"type": "image"}, *([{"type": "text", "text": piece}] if piece else [])]
    return out


def handed_out(messages: Sequence[dict[str, Any]], column: Sequence[Any], where: str) -> list[dict[str, Any]]:
    """Messages with the images of a row's column at their places, before the first question where none is named.

    Raises:
        DataError: there are more or fewer places than images.
    """
    out = [_placed(message) if column else dict(message) for message in messages]
    left = iter(column)
    if column and not images_of(out) and (first := next((m for m in out if m["role"] == "user"), None)) is not None:
        first["images"], first["content"] = [None] * len(column), PLACE * len(column) + first["content"]
    places = sum(image is None for image in images_of(out))
    if places != len(column):
        raise DataError("a row has not as many images as places for them", where=where, got=f"{len(column)} images",
                        expected=f"{places}, for the parts of type 'image' and the words {_NAMED}")  # fmt: skip
    for message in out:
        if "images" in message:
            message["images"] = [next(left) if image is None else image for image in message["images"]]
    return out


def _placed(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose text names places, unless its parts do."""
    count = message["content"].count(_NAMED)
    if message["role"] != "user" or "images" in message or not count:
        return dict(message)
    return {**message, "content": message["content"].replace(_NAMED, PLACE), "images": [None] * count}
