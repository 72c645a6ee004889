"""A sample of images and sounds is opened, and what it is is told."""

from __future__ import annotations

import json

from afina.train.data.rows import read_rows
from afina.train.recipe.sections import DataSection
from afina.train.use import look_files
from afina.train.use.examine import examine

from .. import tiny
from ..tiny_images import write_image
from ..tiny_sounds import tone

PLAIN = DataSection(train="")


def looked(path, **options):
    rows = read_rows(path)
    return examine(rows, PLAIN, **options)


def pictures(folder, count):
    from PIL import Image

    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            write_image(folder / label / f"{number}.png", (number, 0, 0))
    Image.new("L", (30, 10)).save(folder / "a" / "0.png")
    return folder


def test_sizes_and_modes_of_images_are_counted(tmp_path):
    found = looked(pictures(tmp_path / "d", 3))
    assert found.files.lines == [
        "images: those of all 6 rows were opened, 6 could be read",
        "  sizes: 20 x 16 (5), 30 x 10 (1)",
        "  modes: RGB (5), L (1)",
    ]
    assert (found.problems, found.usable, found.lengths) == ({}, None, {"label": (1, 1, 1)})


def test_an_image_that_cannot_be_read_is_a_problem_with_its_name(tmp_path):
    folder = pictures(tmp_path / "d", 2)
    (folder / "b" / "1.png").write_bytes(b"no image")
    found = looked(folder)
    assert found.files.opened == 3
    (told,) = found.problems["cannot read an image"]
    assert "d:4 (b/1.png)" in told


def test_where_nothing_can_be_read_no_row_can_be_used(tmp_path):
    folder = pictures(tmp_path / "d", 1)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no image")
    assert looked(folder).usable == 0


def test_durations_rates_and_channels_of_sounds_are_told(tmp_path):
    for number, (seconds, rate, channels) in enumerate([(0.5, 8000, 1), (1.0, 16000, 2), (0.75, 8000, 1)]):
        (tmp_path / f"{number}.wav").write_bytes(tone(number, seconds, rate, channels))
    rows = [{"audio": f"{number}.wav", "label": "ab"[number % 2]} for number in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = looked(tmp_path / "rows.jsonl")
    assert found.files.lines == [
        "sounds: those of all 3 rows were opened, 3 could be read",
        "  durations: 0.50 to 1.00 s, median 0.75 s",
        "  channels: 1 (2), 2 (1)",
        "  rates: 8,000 Hz (2), 16,000 Hz (1)",
    ]


def test_of_many_rows_a_sample_from_the_first_to_the_last_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(look_files, "MOST_OPENED", 3)
    folder = pictures(tmp_path / "d", 5)
    (folder / "b" / "4.png").write_bytes(b"no image")  # the last one
    found = looked(folder)
    assert found.files.lines[0] == "images: those of 3 of 10 rows were opened, 2 could be read"
    assert found.usable is None


def test_images_in_conversations_are_opened_and_missing_ones_told(tmp_path):
    from ..tiny_images import write_rows

    file = write_rows(tmp_path, 3)
    (tmp_path / "1.png").unlink()
    found = looked(file)
    assert found.files.sizes == {"20 x 16": 2}
    (told,) = found.problems["no such image"]
    assert "train.jsonl:2" in told


def test_rows_of_texts_have_no_files(tmp_path):
    assert looked(tiny.write_rows(tmp_path / "d.jsonl", 2)).files is None
