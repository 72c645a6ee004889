from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from afina.errors import DataError
from afina.train.conversations.image_files import anchored, image_paths, opened, thumbnail

from .. import tiny_images


def test_a_camera_that_was_turned_is_turned_back(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=turned)
    assert opened(str(tmp_path / "a.jpg"), "").size == (20, 30)


def test_images_that_move_and_those_with_deep_colours_are_refused(tmp_path):
    frames = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in (0, 200)]
    for name in ("a.gif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(DataError, match=r"not an image that stands still.*\n.*2 frames"):
            opened(str(tmp_path / name), "")
    Image.new("I;16", (4, 4)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        opened(str(tmp_path / "deep.png"), "")


def test_every_cut_of_a_file_is_told_as_such(tmp_path):
    """Pillow says of damaged files what their readers say: errors of many kinds."""
    noise = Image.effect_noise((16, 16), 80)
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"):
        made = io.BytesIO()
        noise.convert("RGB").save(made, kind)
        whole = made.getvalue()
        assert opened(whole, "").size == (16, 16)
        for share in (0.1, 0.4, 0.7):
            cut = whole[: int(share * len(whole))]
            with pytest.raises(DataError, match=r"x\.jsonl:3: cannot read an image"):
                opened(cut, "x.jsonl:3")


def test_a_thumbnail_is_a_small_picture_of_the_whole():
    for size, expected in (((8, 8), (48, 48)), ((400, 200), (48, 24))):
        found = thumbnail(Image.new("RGB", size, (9, 8, 7)))
        raw = base64.b64decode(found.removeprefix("data:image/png;base64,"))
        with Image.open(io.BytesIO(raw)) as image:
            assert image.size == expected
            assert image.getpixel((1, 1)) == (9, 8, 7)


def test_rows_are_anchored_where_they_name_files_and_only_there(tmp_path):
    file = tiny_images.write_image(tmp_path / "a.png", (1, 2, 3))
    row = {"image": "a.png", "label": "a.png", "images": ["a.png", "https://x/a.png"], "url": "nothing.png",
           "messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text"}]}],
           "bytes": b"xy"}  # fmt: skip
    found = anchored(row, tmp_path)
    assert found["image"] == found["images"][0] == str(file)
    assert found["messages"][0]["content"][0]["path"] == str(file)
    assert (found["label"], found["images"][1], found["url"]) == ("a.png", "https://x/a.png", "nothing.png")
    assert found["bytes"] == base64.b64encode(b"xy").decode()
    assert list(image_paths(row, tmp_path)) == [file] * 3
    assert list(image_paths(row, Path("/"))) == []
