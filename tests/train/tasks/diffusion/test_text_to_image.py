"""Images from captions: what trains is what diffusers runs, what is drawn is drawn again, and a subject's class is
kept."""

from __future__ import annotations

import io
import json

import pytest
import torch

from afina.core.config import methods
from afina.errors import AfinaError, CheckpointError, DataError, RecipeError
from afina.train.base.pipelines.pipeline_folder import pipeline_location
from afina.train.data.rows import read_rows
from afina.train.loop.run import run
from afina.train.recipe.sections import DataSection, ModelSection
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter
from afina.train.report.live import Live
from afina.train.report.sampled import taken
from afina.train.tasks import named
from afina.train.tasks.diffusion.captions import PipelineReader, squared
from afina.train.tasks.diffusion.denoiser import Denoiser
from afina.train.tasks.diffusion.image_captions import NoisyBatches, image_items
from afina.train.tasks.diffusion.noising import FIXED, Noising
from afina.train.use.predictions import predict
from afina.train.use.trained import load_trained

from ... import tiny_pipelines
from ...loop.test_adapt import OPTIONS
from .. import of_files
from ..test_tasks import resumed

TASK = named("text_to_image")
TEXTS = ["a red wall", "a blue wall", ""]


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory):
    return {"sd": models["sd"], "sdxl": tiny_pipelines.write_sdxl(tmp_path_factory.mktemp("sdxl")),
            "flux": tiny_pipelines.write_flux(tmp_path_factory.mktemp("flux"))}  # fmt: skip


@pytest.fixture(scope="module")
def walls(tmp_path_factory):
    return tiny_pipelines.write_images(tmp_path_factory.mktemp("walls"))


def recipe_of(tmp_path, model, images, **changes):
    short = {"training__max_steps": 4, "training__save_steps": 4}
    return of_files.recipe_of(tmp_path, "text_to_image", model, images, 4, **{**short, **changes})


# -- what the denoiser is given ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_captions_are_read_as_the_pipeline_reads_them(kind, folders):
    reader = PipelineReader.of(str(folders[kind]), ModelSection(path=""))
    found = reader.captions(TEXTS)
    pipeline = Denoiser.from_pretrained(folders[kind]).pipeline()
    options = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False, "device": "cpu"}
    for text, words in zip(TEXTS, found, strict=True):
        theirs = pipeline.encode_prompt(text, **options)
        torch.testing.assert_close(words["prompt"], theirs[0][0])
        if kind == "sdxl":
            torch.testing.assert_close(words["pooled"], theirs[2][0])
    assert (found[0]["prompt"] - found[1]["prompt"]).abs().max() > 0.1
    trained = PipelineReader.of(str(folders[kind]), ModelSection(path="", train_text_encoder=True))
    with torch.no_grad():
        batch = {
            name: torch.stack([one[name] for one in trained.captions(TEXTS)]) for name in trained.captions([""])[0]
        }
        own = Denoiser.from_pretrained(folders[kind])._words(batch, "")
    for name, values in own.items():
        torch.testing.assert_close(values, torch.stack([one[name] for one in found]))


def test_latents_of_the_embedded_pipeline_are_the_image(folders):
    from PIL import Image

    reader = PipelineReader.of(str(folders["sd"]), ModelSection(path=""))
    image = Image.effect_noise((8, 8), 90).convert("RGB")
    (found,) = reader.latents([image])
    values, frame = squared(image, 8)
    torch.testing.assert_close(found["means"][:3], values, atol=1e-5, rtol=0)
    assert found["means"][3].abs().max() == 0
    assert found["deviations"].max() < 1e-5
    assert frame.tolist() == [8, 8, 0, 0, 8, 8]
    vae = reader.frozen["vae"]
    torch.testing.assert_close(vae.decode(found["means"][None]).sample[0], values, atol=1e-5, rtol=0)
    reader.release()
    assert not reader.frozen


def test_an_image_is_cut_out_of_its_middle_and_its_frame_says_so():
    from PIL import Image

    image = Image.new("RGB", (32, 16), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 8, 16))  # what is cut away
    values, frame = squared(image, 8)
    assert frame.tolist() == [16, 32, 0, 4, 8, 8]
    assert values[:, :, 1:].min() > 0.9


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_what_the_scheduler_predicts(kind, folders):
    from diffusers import DDPMScheduler

    own = Noising.of(str(folders["sd"]))
    own.scheduler.register_to_config(prediction_type=kind)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    times = own.fixed()[[0, 3, 7]]
    noisy, target = own.mixed(latents, noise, times)
    for i, time in enumerate(times):  # a step that knows the truth gives back the image
        scheduler = DDPMScheduler.from_config(own.scheduler.config, clip_sample=False)
        back = scheduler.step(target[i], int(time), noisy[i]).pred_original_sample
        torch.testing.assert_close(back, latents[i], atol=2e-3, rtol=1e-3)
    assert own.fixed().tolist() == [62, 187, 312, 437, 562, 687, 812, 937]


def test_flow_matching_ends_in_noise_and_its_target_leads_there():
    own = Noising(None, 1000)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noisy, target = own.mixed(latents, noise, torch.tensor([999, 499]))
    torch.testing.assert_close(noisy[0], noise[0])
    torch.testing.assert_close(noisy[1], (latents[1] + noise[1]) / 2)
    torch.testing.assert_close(latents + target, noise)


def flux(folders):
    return PipelineReader.of(str(folders["flux"]), ModelSection(path="", image_size=8))


def test_flux_reads_captions_and_denoises_as_its_pipeline_does(folders):
    """One step of its own pipeline from noise alone follows what is predicted there."""
    reader, own = flux(folders), Denoiser.from_pretrained(folders["flux"], train_text_encoder=False).eval()
    found, pipeline = reader.captions(TEXTS), own.pipeline()
    for text, words in zip(TEXTS, found, strict=True):
        prompt, pooled, _ = pipeline.encode_prompt(text, None, device="cpu", max_sequence_length=16)
        torch.testing.assert_close(words["prompt"], prompt[0])
        torch.testing.assert_close(words["pooled"], pooled[0])
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    words = {name: values[None] for name, values in found[0].items()}
    said = own(means=torch.zeros_like(noise), noise=noise, timesteps=torch.tensor([999]), **words)
    packed = pipeline._pack_latents(noise, 1, 4, 8, 8)
    drawn = pipeline("a red wall", height=8, width=8, num_inference_steps=1, guidance_scale=3.5, latents=packed,
                     max_sequence_length=16, output_type="latent").images  # fmt: skip
    torch.testing.assert_close(pipeline._unpack_latents(drawn, 8, 8, 1), noise - said.sample, atol=1e-5, rtol=1e-4)
    assert said.sample.abs().max() > 1e-2
    assert (found[0]["prompt"] - found[1]["prompt"]).abs().max() > 1e-2


def test_flux_trains_and_diffusers_loads_it(folders, walls, tmp_path, child):
    recipe = recipe_of(tmp_path, folders["flux"], walls, model__image_size=8)
    said, plain, probe, refused = child(flux_trained_and_exported, recipe, tmp_path)
    fresh = Denoiser.from_pretrained(folders["flux"], train_text_encoder=False).eval()
    fresh.pipeline().load_lora_weights(str(tmp_path / "lora"))
    with torch.no_grad():
        torch.testing.assert_close(fresh(**probe).sample, said, atol=1e-5, rtol=1e-4)
    assert (said - plain).abs().max() > 1e-3
    assert "other names" in refused
    with pytest.raises(RecipeError, match="stay as they are"):
        child(run, recipe_of(tmp_path, folders["flux"], walls, model__image_size=8, model__train_text_encoder=True,
                             output={"dir": str(tmp_path / "other")}), Reporter())  # fmt: skip


def flux_trained_and_exported(recipe, folder):
    from afina.export.contract import Subject
    from afina.export.formats.all_formats import FORMATS
    from afina.export.make import make

    out = run(recipe, Reporter()).folder
    trained = load_trained(out, Reporter())
    probe = TASK.probe(trained.prompter, "a red wall", "cpu")
    with torch.no_grad(), trained.model.disable_adapter():
        plain = trained.model(**probe).sample
    with torch.no_grad():
        said = trained.model(**probe).sample
    make(FORMATS["diffusers"], Subject(load_trained(out, Reporter())), folder / "lora")
    return said, plain, probe, FORMATS["kohya"].refusal(Subject(trained))


def items_of(folder, rows, **data):
    reader = PipelineReader.of(str(folder), ModelSection(path=""))
    section = DataSection(train="", **data)
    return reader, image_items(rows, TASK.prompter(section, reader)).items


def test_the_class_weighs_beside_the_subject_as_the_recipe_says(folders, walls):
    reader, items = items_of(folders["sd"], read_rows(walls))
    batch = NoisyBatches(reader, prior_weight=0.5)([{**items[0], "prior": items[1]}, {**items[2], "prior": items[3]}])
    assert torch.equal(batch["weights"], torch.tensor([0.5, 0.5, 0.25, 0.25]))
    model = Denoiser.from_pretrained(folders["sd"], train_text_encoder=False).train()
    with torch.no_grad():
        found = model(**batch)
    expected = found.losses[:2].mean() + 0.5 * found.losses[2:].mean()
    torch.testing.assert_close(found.loss, expected)
    assert found.losses[2:].mean() > 0.1


def test_held_out_images_are_judged_without_a_draw(folders, walls):
    reader = PipelineReader.of(str(folders["sd"]), ModelSection(path=""))
    out = TASK.encode(read_rows(walls), TASK.prompter(DataSection(train=""), reader), None, 0)
    batch = NoisyBatches(reader)(out.items[:2])
    assert len(batch["timesteps"]) == 2 * FIXED
    assert (
        batch["timesteps"][:FIXED].tolist()
        == batch["timesteps"][FIXED:].tolist()
        == Noising(None, 1000).fixed().tolist()
    )
    model, before = Denoiser.from_pretrained(folders["sd"], train_text_encoder=False).eval(), torch.get_rng_state()
    with torch.no_grad():
        first, second = model(**batch).losses, model(**batch).losses
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())
    assert len(set(first.tolist())) == 2 * FIXED


def test_captions_are_left_out_in_training_alone(folders, walls):
    reader, items = items_of(folders["sd"], read_rows(walls))
    model = Denoiser.from_pretrained(folders["sd"], train_text_encoder=False)
    model.caption_dropout = 0.999999
    batch = NoisyBatches(reader, empty=reader.captions([""])[0])(items[:2])
    assert torch.equal(model.train()._read(batch)["prompt"], reader.captions([""])[0]["prompt"].expand(2, -1, -1))
    assert torch.equal(model.eval()._read(batch)["prompt"], batch["prompt"])


def test_captions_stand_in_a_column_beside_the_image_or_in_the_recipe(folders, walls, tmp_path):
    from PIL import Image

    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("a black\nwall\n")
    rows = read_rows(tmp_path)
    assert rows.values == [{"image": "a.png", "text": "a black wall"}, {"image": "b.png"}]
    with pytest.raises(DataError, match="an image without a caption"):
        items_of(folders["sd"], rows)
    _, items = items_of(folders["sd"], rows, instance_prompt="sks wall")
    assert [item["caption"] for item in items] == ["a black wall", "sks wall"]
    assert read_rows(walls).values[1] == {"image": "1.png", "text": "a blue wall"}


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.whole(
    "Stable Diffusion is trained and drawn with below, and exports of both are compared as they are made"
)
def test_sdxl_trains_with_its_text_encoders_and_diffusers_loads_it(folders, walls, tmp_path, child):
    more = {"model__train_text_encoder": True, "training__gradient_checkpointing": True, "training__max_steps": 3,
            "diffusion__caption_dropout": 0.3}  # fmt: skip
    expected, files = child(trained_and_exported, recipe_of(tmp_path, folders["sdxl"], walls, **more), tmp_path)
    from diffusers import DiffusionPipeline

    probe, plain = expected.pop("probe"), expected.pop("plain")
    for layout, prediction in expected.items():
        fresh = Denoiser.from_pretrained(folders["sdxl"]).eval()
        pipeline = fresh.pipeline()
        pipeline.load_lora_weights(str(tmp_path / layout), weight_name=files[layout])
        with torch.no_grad():
            torch.testing.assert_close(fresh(**probe).sample, prediction, atol=1e-5, rtol=1e-4)
        assert (prediction - plain).abs().max() > 1e-3
        assert any("text_encoder_2" in key or "lora_te2" in key for key in keys_of(tmp_path / layout / files[layout]))
    assert isinstance(pipeline, DiffusionPipeline)


def keys_of(file):
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def trained_and_exported(recipe, folder):
    from afina.export.contract import Subject
    from afina.export.formats.all_formats import FORMATS
    from afina.export.make import make

    out = run(recipe, Reporter()).folder
    trained = load_trained(out, Reporter())
    probe = TASK.probe(trained.prompter, "a red wall", "cpu")
    with torch.no_grad():
        said = trained.model(**probe).sample
        with trained.model.disable_adapter():
            expected = {"probe": probe, "plain": trained.model(**probe).sample}
    for layout in ("diffusers", "kohya"):
        found = make(FORMATS[layout], Subject(load_trained(out, Reporter())), folder / layout)
        assert found.difference < 1e-5
        expected[layout] = said
    refused = FORMATS["gguf"].refusal(Subject(trained))
    assert refused is not None
    return expected, {layout: FORMATS[layout].file for layout in ("diffusers", "kohya")}


def test_the_merged_pipeline_draws_what_the_adapter_draws(folders, walls, tmp_path, child):
    diffusion = {"sample_steps": 3, "samples": TEXTS[:2], "sample_every": 4}
    recipe = recipe_of(tmp_path, folders["sd"], walls, diffusion=diffusion, training__max_steps=6)
    result, done, merged, difference, page = child(drawn_and_merged, recipe, walls)
    assert difference < 1e-4
    assert result.after.lowered is not None
    assert result.after.loss == pytest.approx(result.before.loss - result.after.lowered[0])
    assert done.scores.rows == 8
    from diffusers import DiffusionPipeline
    from PIL import Image

    pipeline = DiffusionPipeline.from_pretrained(merged)
    pipeline.set_progress_bar_config(disable=True)
    for number in (1, 2):
        noise = torch.Generator().manual_seed(recipe.training.seed + number - 1)
        text = done.rows[number - 1]["text"]
        (image,) = pipeline(text, num_inference_steps=3, generator=noise, height=8, width=8).images
        own = Image.open(io.BytesIO(done.files[f"{number:04}.png"]))
        assert max(abs(a - b) for a, b in zip(image.tobytes(), own.tobytes(), strict=True)) <= 1
    # What was drawn along the way shows that something was learnt.
    times = taken(result.folder)
    assert [one["step"] for one in times] == [0, 4, 6]
    first, _, last = ((result.folder / "samples" / one["files"][0]).read_bytes() for one in times)
    assert first != last
    assert "![step 6](samples/step-000006-1.png)" in (result.folder / "README.md").read_text()
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert data["drawn"]["steps"] == [0, 4, 6]
    assert [row[0] for row in data["drawn"]["rows"]] == TEXTS[:2]
    assert all(url.startswith("data:image/png;base64,") for row in data["drawn"]["rows"] for url in row[1:])


def drawn_and_merged(recipe, walls):
    from afina.export.contract import Subject
    from afina.export.formats.all_formats import FORMATS
    from afina.export.make import make
    from afina.export.merged import merge

    live = Live(Reporter(), walls.parent / "live.html")
    result = run(recipe, live)
    live.finish(result.folder, "done")
    trained = load_trained(result.folder, Reporter())
    done = predict(trained, read_rows(walls), Reporter(), batch_size=8)
    out = result.folder.parent / "merged"
    found = make(FORMATS["diffusers"], Subject(load_trained(result.folder, Reporter())), result.folder.parent / "lora")
    assert found.difference < 1e-5
    return result, done, out, merge(trained, out).difference, live.path.read_text()


def test_dreambooth_resumes_to_the_bit_on_the_images_that_the_base_made(folders, walls, tmp_path, child):
    data = {"train": str(walls), "eval_split": 0.25, "text_column": "caption", "instance_prompt": "sks wall",
            "class_prompt": "a wall", "class_count": 9}  # fmt: skip
    diffusion = {"sample_steps": 2, "caption_dropout": 0.3}
    recipe = recipe_of(tmp_path, folders["sd"], walls, data=data, training__max_steps=4, training__save_steps=2,
                       diffusion=diffusion, model__train_text_encoder=True)  # fmt: skip
    whole, again, report, report_again, made = child(dreambooth, recipe)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert any("text_encoder" in name for name in whole)
    assert report["after"] == report_again["after"]
    assert (made, report["training"]["steps"]) == (9, 4)


def dreambooth(recipe):
    from afina.cache import cache_dir

    found = resumed(recipe)
    return *found, sum(1 for _ in (cache_dir() / "class-images").glob("*/*.png"))


def test_a_class_folder_is_used_as_it_is(folders, walls, tmp_path, child):
    data = {"train": str(walls), "eval_split": 0.25, "instance_prompt": "sks wall", "class_prompt": "a wall",
            "class_images": str(walls)}  # fmt: skip
    recipe = recipe_of(tmp_path, folders["sd"], walls, data=data, training__max_steps=1)
    assert child(run, recipe, Reporter()).report["training"]["steps"] == 1


NOT_OF_PIPELINES = {
    "ADAPTION_PROMPT": "match no module", "TRAINABLE_TOKENS": "embeds no tokens", "SHADOW": "not a block",
    "BOTTLENECK": "no attention or feed-forward sublayers", "XLORA": "needs experts",
    "FROD": "layers of one category", "REFT": "hidden states",
    **dict.fromkeys(("CARTRIDGE", "CPT", "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"),
                    ""),
}  # fmt: skip
"""Methods that no pipeline can be trained with, and what they say."""
_SOON = ("IA3", "PREFIX_TUNING")


@pytest.mark.parametrize(
    "name", [n if n in _SOON else pytest.param(n, marks=pytest.mark.whole("the same way for all")) for n in methods()]
)
def test_every_method_trains_a_pipeline_or_says_why_not(name, folders, walls, tmp_path, child):
    method = {"type": name.lower(), **OPTIONS.get(name, {})}
    recipe = recipe_of(tmp_path, folders["sd"], walls, method=method, training__max_steps=3,
                       training__learning_rate=None)  # fmt: skip
    if name in NOT_OF_PIPELINES or "task_ids" in getattr(methods()[name].implementation, "inputs", ()):
        with pytest.raises(AfinaError, match=NOT_OF_PIPELINES.get(name) or None) as told:
            child(run, recipe, Reporter())
        assert len(str(told.value).splitlines()) <= 4
        return
    result = child(run_and_draw, recipe)
    assert result.after.loss != result.before.loss


def run_and_draw(recipe):
    result = run(recipe, Reporter())
    trained = load_trained(result.folder, Reporter())
    batch = TASK.probe(trained.prompter, "a wall", "cpu")
    assert torch.isfinite(trained.model(**batch).sample).all()
    return result


def test_images_with_captions_or_alone_are_rows_of_this_task(walls, tmp_path):
    from afina.train.use.examine import examine

    tiny_pipelines.write_images(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    for folder, columns in ((walls, {"image", "text"}), (tmp_path, {"image"})):
        rows = read_rows(folder)
        found = examine(rows, DataSection(train=str(folder)))
        assert set(rows.values[0]) == columns
        assert (found.task, found.shape) == ("text_to_image", "captioned")


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training__augment": ["flip"]}, "latents are made once"),
        ({"model__quantize": "nf4"}, "trained unquantised"),
        ({"model__image_size": 13}, "a multiple of 2"),
        ({"data__labels": ["a", "b"]}, "neither labels nor tasks"),
        ({"data__class_prompt": "a wall"}, "data.instance_prompt"),
        ({"data__class_images": "walls"}, "data.class_prompt"),
        ({"data__prompt": "{text}"}, "rows of this task are images"),
        ({"training__loss_on_prompt": True}, "no loss on prompts"),
        ({"training__packing": True}, "cannot share a sequence"),
    ],
)
def test_settings_that_pipelines_cannot_have_are_refused(changes, said, folders, walls, tmp_path, child):
    with pytest.raises(RecipeError, match=said):
        child(run, recipe_of(tmp_path, folders["sd"], walls, **changes), Reporter())


def test_settings_of_pipelines_are_refused_by_other_tasks(models, tmp_path, child):
    from ... import tiny

    for key, value in (("guidance", "2"), ("instance_prompt", "a wall"), ("train_text_encoder", "true")):
        recipe = load_recipe(str(tiny.write_recipe(tmp_path, models["llama"])), [(key, value)])
        with pytest.raises(RecipeError, match="text_to_image alone"):
            child(run, recipe, Reporter())


def test_what_is_no_pipeline_is_told(models, folders, tmp_path):
    with pytest.raises(CheckpointError, match="not a pipeline"):
        pipeline_location(ModelSection(path=str(models["llama"])), Reporter())
    with pytest.raises(RecipeError, match="tiny-sd"):
        pipeline_location(ModelSection(path="embedded:tiny-sx"), Reporter())
    with pytest.raises(RecipeError, match="no such pipeline"):
        pipeline_location(ModelSection(path=str(tmp_path / "nowhere")), Reporter())
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "AudioLDMPipeline"}))
    with pytest.raises(CheckpointError, match="AudioLDMPipeline"):
        PipelineReader.of(str(tmp_path), ModelSection(path=""))
