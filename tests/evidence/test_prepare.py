from __future__ import annotations

import json

from afina.evidence.prepare import prepare
from afina.train.recipe.settings import recipe_of_text
from afina.train.report.events import Reporter

from ..train import tiny_images, tiny_sounds


def test_rows_of_images_mean_the_same_in_the_folder_of_a_comparison(tmp_path):
    for name in ("dark", "light"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(4):
            tiny_images.write_image(tmp_path / "pets" / name / f"{i}.png", (100, 100, 100))
    model = tiny_images.write_vit(tmp_path / "vit")
    text = (
        f"task: image_classification\nmodel: {{path: {model}}}\ndata: {{train: {tmp_path / 'pets'}, eval_split: 0.5}}"
    )
    shared = prepare(recipe_of_text(f"{text}\noutput: {{dir: x}}", "r"), tmp_path / "cmp" / "data", Reporter())
    rows = [json.loads(line) for path in (shared.train, shared.held_out) for line in path.read_text().splitlines()]
    assert {row["image"] for row in rows} == {str(path) for path in (tmp_path / "pets").rglob("*.png")}
    assert shared.labels == ["dark", "light"]


def test_rows_of_sounds_mean_the_same_in_the_folder_of_a_comparison(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.wav").write_bytes(tiny_sounds.tone(i))
    (tmp_path / "rows.csv").write_text("audio,text\n" + "".join(f"{i}.wav,word\n" for i in range(4)))
    text = f"task: speech_recognition\nmodel: {{path: {tiny_sounds.write_whisper(tmp_path / 'w')}, language: cy}}"
    text += f"\ndata: {{train: {tmp_path / 'rows.csv'}, eval_split: 0.5}}\noutput: {{dir: x}}"
    shared = prepare(recipe_of_text(text, "r"), tmp_path / "cmp" / "data", Reporter())
    rows = [json.loads(line) for path in (shared.train, shared.held_out) for line in path.read_text().splitlines()]
    assert {row["audio"] for row in rows} == {str(tmp_path / f"{i}.wav") for i in range(4)}
