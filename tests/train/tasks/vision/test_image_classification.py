"""Images and labels: what the model takes is what its processor gives, and what is trained is what is loaded."""

from __future__ import annotations

import base64
import io
import json
from functools import partial

import pytest
import torch

from afina.core.config import methods
from afina.errors import DataError, RecipeError
from afina.train.base.image_processor import load_image_processor
from afina.train.data.rows import read_rows
from afina.train.loop.plans.planning import planned
from afina.train.loop.run import run
from afina.train.recipe.sections import DataSection, ModelSection
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter
from afina.train.tasks import named
from afina.train.tasks.files.file_classes import confusion_of
from afina.train.tasks.vision.image_classification import image_items
from afina.train.use.predictions import predict
from afina.train.use.trained import load_trained

from ... import tiny, tiny_images
from .. import of_files

TASK = named("image_classification")
COLOURS = {"cat": (200, 60, 40), "dog": (40, 60, 200), "owl": (60, 200, 60)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in tiny_images.CLASSIFIERS.items()}


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder of images for each of three classes, told apart by colour."""
    folder = tmp_path_factory.mktemp("pets")
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for i in range(8):
            tiny_images.write_image(folder / name / f"{i}.png", tuple(c + 5 * i for c in colour))
    return folder


def recipe_of(tmp_path, model, data, **changes):
    return of_files.recipe_of(tmp_path, TASK.name, model, data, 6, **changes)


# -- what the model takes ---------------------------------------------------------------------------------------------


def pictures(folder):
    """Images of every kind that is read, by how their files are made."""
    from PIL import Image

    noise = Image.effect_noise((30, 20), 80)
    colours = Image.merge("RGB", [noise, noise.rotate(90), noise.rotate(180)])
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    made = {"grey.png": (noise, {}), "palette.png": (colours.quantize(16), {}), "colours.bmp": (colours, {}),
            "see-through.png": (Image.merge("RGBA", [*colours.split(), noise]), {}),
            "turned.jpg": (colours, {"exif": turned}), "print.jpg": (colours.convert("CMYK"), {}),
            "small.webp": (colours, {"lossless": True})}  # fmt: skip
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    return sorted(made)


_OTHERS = pytest.mark.whole("the same way for all; ResNet and ViT stand for them")
FEW = [name if name in ("vit", "resnet") else pytest.param(name, marks=_OTHERS) for name in tiny_images.CLASSIFIERS]


@pytest.mark.parametrize("family", FEW)
def test_a_batch_is_to_the_bit_what_the_models_processor_gives(family, folders, tmp_path):
    from transformers import AutoImageProcessor
    from transformers.image_utils import load_image

    names = pictures(tmp_path)
    rows = [{"image": name, "label": "ab"[i % 2]} for i, name in enumerate(names)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    processor = load_image_processor(str(folders[family]), ModelSection(path=""))
    prompter = TASK.prompter(DataSection(train=""), processor)
    items = TASK.encode(read_rows(tmp_path / "rows.jsonl"), prompter, ["a", "b"], 0).items
    batch = TASK.collator(processor)(items)
    theirs = AutoImageProcessor.from_pretrained(folders[family], backend="pil")(
        images=[load_image(str(tmp_path / name)) for name in names], return_tensors="pt"
    )
    assert torch.equal(batch["pixel_values"], theirs["pixel_values"])
    assert batch["pixel_values"].std() > 0.1
    assert batch["labels"].tolist() == [i % 2 for i in range(len(names))]


def test_images_are_paths_bytes_base64_or_what_a_data_set_holds(folders, pets):
    raw = (pets / "cat" / "1.png").read_bytes()
    text = base64.b64encode(raw).decode()
    forms = ["cat/1.png", str(pets / "cat" / "1.png"), raw, f"data:image/png;base64,{text}", text,
             {"bytes": raw, "path": None}]  # fmt: skip
    rows = read_rows(pets).pick([0] * len(forms))
    for row, form in zip(range(len(forms)), forms, strict=True):
        rows.values[row] = {"image": form, "label": "cat"}
    batch = TASK.collator(load_image_processor(str(folders["vit"]), ModelSection(path="")))(
        image_items(rows, lambda: None)
    )
    assert all(torch.equal(one, batch["pixel_values"][0]) for one in batch["pixel_values"])
    assert batch["pixel_values"][0].std() > 0.1


def test_a_folder_of_classes_is_read_as_datasets_reads_it(pets, monkeypatch, tmp_path):
    from afina.train.data.hub_rows import read_hub

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    own, theirs = read_rows(pets), read_hub(f"hub:{pets}")
    labelled = {(row["label"], row["image"].rsplit("/", 1)[1]) for row in own.values}
    assert labelled == {(row["label"], row["image"]["path"].rsplit("/", 1)[1]) for row in theirs.values}
    assert len(labelled) == 24


def test_training_images_are_changed_and_held_out_ones_are_not(folders, pets, tmp_path):
    from PIL import Image

    file = tmp_path / "half.png"
    half = Image.new("RGB", (16, 16), (255, 255, 255))
    half.paste((0, 0, 0), (0, 0, 8, 16))
    half.save(file)
    collate = TASK.collator(load_image_processor(str(folders["vit"]), ModelSection(path="")))
    plain = collate([{"image": str(file), "where": ""}])["pixel_values"]
    torch.manual_seed(0)
    flipped = collate([{"image": str(file), "where": "", "augment": ("flip",)}] * 40)["pixel_values"]
    mirrored = [torch.equal(one, plain[0].flip(2)) for one in flipped]
    assert all(m or torch.equal(one, plain[0]) for m, one in zip(mirrored, flipped, strict=True))
    assert 10 < sum(mirrored) < 30
    cut = collate([{"image": str(file), "where": "", "augment": ("crop",)}] * 8)["pixel_values"]
    assert len({one.sum().item() for one in cut}) > 3
    # The edge between black and white stays within a crop of 0.8 of the sides.
    assert ((cut[:, 0].mean(1)[:, 0] < 0) & (cut[:, 0].mean(1)[:, -1] > 0)).all()


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FEW)
def test_a_run_learns_is_loaded_predicts_and_merges(family, folders, pets, tmp_path, child):
    child(learns_and_is_used, family, folders[family], recipe_of(tmp_path, folders[family], pets), pets)


def learns_and_is_used(family, model, recipe, pets):
    from transformers import AutoImageProcessor, AutoModelForImageClassification
    from transformers.image_utils import load_image

    from afina.export.merged import merge

    result = run(recipe, Reporter())
    assert result.after.accuracy > 0.8
    assert result.after.loss < 0.6 * result.before.loss
    assert result.after.low < result.after.accuracy <= result.after.high
    assert sum(n for row in result.before.confusion.values() for n in row.values()) == 6
    assert len(result.before.wrong) == 6 - round(6 * result.before.accuracy)
    assert all(picture.startswith("data:image/png;base64,") for picture, _, _ in result.before.wrong)
    trained = load_trained(result.folder, Reporter())
    assert trained.labels == sorted(COLOURS)
    done = predict(trained, read_rows(pets), Reporter(), batch_size=5)
    assert done.scores.accuracy > 0.8
    assert TASK.told(trained, str(pets / "owl" / "1.png"), 0).startswith("owl ")
    assert merge(trained, result.folder / "merged").difference < 1e-4
    # Others load the merged model, and it says the same.
    merged = AutoModelForImageClassification.from_pretrained(result.folder / "merged").eval()
    processor = AutoImageProcessor.from_pretrained(result.folder / "merged")
    for row in done.rows[::5]:
        image = load_image(str(pets / row["image"]))
        probabilities = merged(**processor(images=image, return_tensors="pt")).logits.softmax(1)[0]
        assert merged.config.id2label[int(probabilities.argmax())] == row["prediction"]
        assert float(probabilities.max()) == pytest.approx(row["probability"], abs=1e-4)


def test_batch_normalisation_of_the_base_keeps_its_statistics(folders, pets, tmp_path, child):
    child(statistics_stay, recipe_of(tmp_path, folders["resnet"], pets, training__max_steps=2))


def statistics_stay(recipe):
    seen = {}

    class Watched(Reporter):
        def reached(self, stage, parts):
            seen[stage] = {n: b.clone() for n, b in parts["model"].named_buffers()}
            seen["training"] = [m.training for m in parts["model"].modules() if isinstance(m, torch.nn.BatchNorm2d)]

    run(recipe, Watched())
    assert seen["ready"].keys() == seen["trained"].keys()
    assert any("running_mean" in name for name in seen["ready"])
    assert all(torch.equal(buffer, seen["trained"][name]) for name, buffer in seen["ready"].items())
    assert not any(seen["training"])


def test_the_reference_reads_the_adapter_with_its_head(folders, pets, tmp_path, child):
    import peft
    from transformers import AutoModelForImageClassification

    folder = child(folder_of_run, recipe_of(tmp_path, folders["vit"], pets, training__max_steps=3))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == (None, ["classifier"])
    base = AutoModelForImageClassification.from_pretrained(folders["vit"], num_labels=3, ignore_mismatched_sizes=True)
    theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    batch = {"pixel_values": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    own = child(logits_of, folder, batch)
    torch.testing.assert_close(theirs(**batch).logits, own)
    with theirs.disable_adapter():
        assert (theirs(**batch).logits - own).abs().max() > 1e-3


def folder_of_run(recipe):
    return run(recipe, Reporter()).folder


def logits_of(folder, batch):
    return load_trained(folder, Reporter()).model(**batch).logits.detach()


def test_a_run_with_changed_images_resumes_to_the_bit(folders, pets, tmp_path, child):
    changes = {"training__max_steps": 12, "training__save_steps": 6, "training__augment": ["flip", "crop"]}
    of_files.resumes_to_the_bit(child, recipe_of(tmp_path, folders["vit"], pets, **changes))


def test_a_run_does_not_go_on_with_other_images(folders, tmp_path, child):
    pets = tmp_path / "pets"
    for name, colour in COLOURS.items():
        (pets / name).mkdir(parents=True)
        for i in range(3):
            tiny_images.write_image(pets / name / f"{i}.png", colour)
    recipe = recipe_of(tmp_path, folders["vit"], pets, training__max_steps=2, training__save_steps=1)
    with pytest.raises(RecipeError, match="rows of"):
        child(goes_on_after_a_change, recipe, pets / "cat" / "1.png")


def goes_on_after_a_change(recipe, file):
    folder = run(recipe, Reporter()).folder
    (folder / "report.json").unlink()
    run(recipe, Reporter(), resume=True)  # nothing has changed
    (folder / "report.json").unlink()
    tiny_images.write_image(file, (0, 0, 0))
    run(recipe, Reporter(), resume=True)


def test_a_dry_run_says_what_images_will_take(folders, pets, tmp_path, child):
    lines = child(planned, recipe_of(tmp_path, folders["resnet"], pets), Reporter())
    assert any("a step of 6 images of 3 x 32 x 32" in line for line in lines)
    assert any(line.startswith("time: training") for line in lines)


def test_confusions_count_every_label_with_every_answer():
    found = confusion_of(["b", "a", "a", "a"], ["b", "b", "a", "b"])
    assert found == {"a": {"a": 1, "b": 2}, "b": {"b": 1}}


NOT_OF_IMAGES = {
    "ADAPTION_PROMPT": "match no module", "TRAINABLE_TOKENS": "cannot adapt this kind of layer",
    "SHADOW": "takes none", "XLORA": "needs experts",
    **dict.fromkeys(("CARTRIDGE", "CPT", "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"),
                    "takes no tokens"),
}  # fmt: skip
"""Methods that no vision model can be trained with, and what they say."""
_SOON = ("LORA", "BITFIT", "PROMPT_TUNING", "SHADOW")


@pytest.mark.parametrize(
    "name", [n if n in _SOON else pytest.param(n, marks=pytest.mark.whole("the same way for all")) for n in methods()]
)
def test_every_method_trains_on_a_vit_or_says_why_not(name, folders, pets, tmp_path, child):
    changes = of_files.few_steps(name, tmp_path, pets, "image")
    recipe = recipe_of(tmp_path, folders["vit"], pets, **changes)
    out = of_files.trains_or_says_why(child, recipe, NOT_OF_IMAGES.get(name), partial(run_and_load, pets))
    if out is not None and not of_files.takes_tasks(name):
        assert out[1].rows == 24


def run_and_load(pets, recipe, reporter):
    result = run(recipe, reporter)
    trained = load_trained(result.folder, reporter)
    if recipe.data.task_column is not None:
        return result, None
    return result, predict(trained, read_rows(pets), reporter, batch_size=8).scores


# -- mistakes ---------------------------------------------------------------------------------------------------------


def spoilt(folder, what):
    from PIL import Image

    for name in "ab":
        (folder / name).mkdir()
        for i in range(2):
            Image.effect_noise((20, 16), 50).save(folder / name / f"{i}.png")
    first = folder / "a" / "0.png"
    if what == "truncated":
        first.write_bytes(first.read_bytes()[:200])
    elif what == "gif":
        first.unlink()
        Image.new("P", (5, 5)).save(folder / "a" / "0.gif")
    elif what == "hidden gif":
        made = io.BytesIO()
        Image.new("P", (5, 5)).save(made, "GIF")
        first.write_bytes(made.getvalue())
    elif what == "deep":
        Image.new("I;16", (5, 5)).save(first)
    elif what == "empty":
        first.write_bytes(b"")
    elif what == "no images":
        (folder / "c").mkdir()
    elif what == "a stray file":
        (folder / "notes.md").write_text("notes")
    return folder


SPOILT = {
    "truncated": r"a/0\.png\): cannot read an image", "gif": r"a/0\.gif: not an image that is read",
    "hidden gif": r"a/0\.png\): not an image that stands still", "deep": "more than 8 bits",
    "empty": r"a/0\.png\): cannot read an image", "no images": "c: a class has no images",
    "a stray file": r"notes\.md: a file beside the folders",
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_a_file_that_cannot_be_used_is_named(what, folders, tmp_path):
    with pytest.raises(DataError, match=SPOILT[what]) as told:
        encoded(folders["vit"], spoilt(tmp_path, what))
    assert len(str(told.value).splitlines()) <= 4


def encoded(model, folder):
    rows, data = read_rows(folder), DataSection(train=str(folder))
    processor = load_image_processor(str(model), ModelSection(path=""))
    return TASK.encode(rows, TASK.prompter(data, processor), TASK.labels(data, [rows]), 0)


def test_images_that_no_batch_can_hold_are_told(folders, pets, tmp_path, monkeypatch):
    from PIL import Image

    for i in range(2):
        (tmp_path / "ab"[i]).mkdir()
        Image.new("RGB", (16 + 4 * i, 16)).save(tmp_path / "ab"[i] / "1.png")
    rows = read_rows(tmp_path)
    processor = load_image_processor(str(folders["vit"]), ModelSection(path=""))
    processor.do_resize = False
    with pytest.raises(DataError, match="several sizes") as told:
        image_items(rows, lambda: None, processor)
    assert "16 x 16 and 16 x 20" in str(told.value)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"img": "a.png", "label": "x"}], "data.columns={image: img}"),
        ([{"image": "nothing.png", "label": "x"}], "no such image"),
        ([{"image": 7, "label": "x"}], "not an image"),
    ],
)
def test_a_row_without_an_image_is_told_with_its_line(rows, said, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=said) as told:
        image_items(read_rows(tmp_path / "rows.jsonl"), lambda: None)
    assert "rows.jsonl:1" in str(told.value)


def test_one_class_no_labels_and_unknown_labels_are_told(pets, tmp_path):
    rows = read_rows(pets)
    with pytest.raises(DataError, match="fewer than two labels"):
        TASK.labels(DataSection(train=""), [rows.take(0, 3)])
    with pytest.raises(DataError, match="label out of range"):
        TASK.labels(DataSection(train="", labels=["cat", "dog"]), [rows])
    with pytest.raises(DataError, match="images without labels"):
        TASK.labels(DataSection(train=""), [read_rows(pets / "cat")])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="no data files"):
        read_rows(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__image_size": 32}, "images of its own size only"),
        ({"model__new_tokens": ["<x>"]}, "are images"),
        ({"data__prompt": "{image}"}, "are images"),
        ({"training__packing": True}, "cannot share a sequence"),
    ],
)
def test_settings_that_images_cannot_have_are_refused(changes, said, folders, pets, tmp_path, child):
    with pytest.raises(RecipeError, match=said):
        child(run, recipe_of(tmp_path, folders["vit"], pets, **changes), Reporter())


def test_a_model_that_keeps_all_activations_refuses_to_recompute_them(folders, pets, tmp_path, child):
    recipe = recipe_of(tmp_path, folders["resnet"], pets, training__gradient_checkpointing=True)
    with pytest.raises(RecipeError, match="cannot recompute"):
        child(run, recipe, Reporter())


def test_settings_of_images_are_refused_by_tasks_of_texts(models, tmp_path, child):
    for key, value in (("image_size", "32"), ("augment", "[flip]")):
        recipe = load_recipe(str(tiny.write_recipe(tmp_path, models["llama"])), [(key, value)])
        with pytest.raises(RecipeError, match="no images"):
            child(run, recipe, Reporter())


def test_an_image_size_of_ones_own_is_kept_with_the_adapter(folders, pets, tmp_path, child):
    recipe = recipe_of(tmp_path, folders["convnext"], pets, model__image_size=48, training__max_steps=2)
    sides, there = child(sides_of, recipe, pets)
    assert sides == there == (48, 48)


def sides_of(recipe, pets):
    seen = []

    class Watched(Reporter):
        def reached(self, stage, parts):
            if stage == "ready":
                batch = parts["trainer"].data_collator(parts["data"].train.items[:1])
                seen.append(tuple(batch["pixel_values"].shape[2:]))

    trained = load_trained(run(recipe, Watched()).folder, Reporter())
    batch = TASK.collator(trained.tokenizer)(image_items(read_rows(pets).take(0, 1), lambda: None))
    return seen[0], tuple(batch["pixel_values"].shape[2:])
