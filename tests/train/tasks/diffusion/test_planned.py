"""What a pipeline's run takes is told by its own steps, without its weights."""

from __future__ import annotations

import re
import shutil

import pytest

from ... import tiny_pipelines
from ...loop.plans.test_rehearsal import rehearsed
from .. import of_files

_OTHERS = pytest.mark.whole("other pipelines and settings are planned by the same code")
_CLASS = {"data__instance_prompt": "a red wall", "data__class_prompt": "a wall", "data__class_count": 6}
_WAYS = {
    "sd": ("sd", {}),
    "recomputed": ("sd", {"training__gradient_checkpointing": True}),
    "bf16": ("sd", {"model__dtype": "bfloat16"}),
    "dropped": ("sd", {"diffusion__caption_dropout": 0.2}),
    "encoders": ("sd", {"model__train_text_encoder": True}),
    "class": ("sd", _CLASS),
    "full": ("sd", {"method": {"type": "full"}}),
    "oft": ("sd", {"method": {"type": "oft", "oft_block_size": 8}}),
    "sdxl": ("sdxl", {}),
    "flux": ("flux", {"model__image_size": 16}),
}


@pytest.fixture(scope="module")
def written(models, tmp_path_factory):
    """Folders of pipelines whose weights are gone, and images."""
    folder = tmp_path_factory.mktemp("sketched")
    out = {"walls": tiny_pipelines.write_images(folder / "walls"), "sd": folder / "sd"}
    shutil.copytree(models["sd"], out["sd"])
    out |= {"sdxl": tiny_pipelines.write_sdxl(folder / "sdxl"), "flux": tiny_pipelines.write_flux(folder / "flux")}
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    return out


def recipe_of(tmp_path, written, kind, **changes):
    settings = {"training__max_steps": 4, "training__save_steps": 4, **changes}
    of_files.recipe_of(tmp_path, "text_to_image", written[kind], written["walls"], 2, **settings)
    return tmp_path / "recipe.yaml"


@pytest.fixture(scope="module")
def found(written, tmp_path_factory, child):
    """What is rehearsed of a way, once."""
    known = {}

    def of(way):
        if way not in known:
            kind, changes = _WAYS[way]
            known[way] = child(rehearsed, recipe_of(tmp_path_factory.mktemp(way), written, kind, **changes))
        return known[way]

    return of


@pytest.mark.parametrize(
    "way", ["sd", *(pytest.param(way, marks=_OTHERS) for way in ("sdxl", "flux", "oft", "dropped"))]
)
def test_a_step_is_rehearsed_from_configs_alone(way, found):
    told = found(way)
    assert told["parts"]["optimizer"] >= 2 * told["trained"]
    assert told["parts"]["gradients"] >= told["trained"]
    assert told["flops"] > told["weights"] // 4  # of two images, forward and backward
    assert told["most"] > 4 * told["trained"]
    assert told["sizes"][0] == 2


def test_the_weights_are_the_denoisers_and_those_of_text_encoders_that_train(found):
    unet = 802_948 - 9_984
    assert 0 <= found("sd")["weights"] - 4 * unet < 2**15  # the scheduler's table beside them
    assert abs(found("encoders")["weights"] - found("sd")["weights"] - 4 * encoder()) < 2**10
    assert found("bf16")["weights"] < 0.52 * found("sd")["weights"]


def encoder():
    """Parameters of the text model of the embedded pipeline."""
    width, words = 32, 514
    layer = 4 * (width * width + width) + 2 * 2 * width + 2 * (2 * width * width) + 3 * width
    return (words + 32) * width + 2 * layer + 2 * width


@_OTHERS
def test_a_class_doubles_the_batch_and_what_is_computed_again_is_not_kept(found):
    plain = found("sd")
    assert found("class")["sizes"][0] == 4
    assert found("class")["flops"] > 1.9 * plain["flops"]
    assert found("recomputed")["flops"] > 1.2 * plain["flops"]
    assert found("recomputed")["most"] < 0.8 * plain["most"]
    assert found("full")["parts"]["optimizer"] >= 2 * 4 * 792_964


def told(path, free, other=None):
    from afina.train.loop.plans import forecast, planning, whole_plan
    from afina.train.recipe.settings import load_recipe
    from afina.train.report.events import Reporter

    real = forecast.free_bytes, planning.free_bytes
    forecast.free_bytes = planning.free_bytes = lambda device: free
    try:
        if other is not None:
            return whole_plan.make(load_recipe(str(path)), Reporter(), other).as_dict()
        return [
            planning.planned(load_recipe(str(path)), Reporter()),
            planning.fitting(load_recipe(str(path)), in_turn=False),
        ]
    finally:
        forecast.free_bytes, planning.free_bytes = real


def test_what_reads_and_draws_is_told_beside_the_step_and_what_would_make_it_fit(written, tmp_path, child):
    recipe = recipe_of(tmp_path, written, "sd", **{"diffusion__samples": ["a red wall"] * 40, **_CLASS})
    lines, together = child(told, recipe, 1000)
    (step,) = [line for line in lines if line.startswith("memory: weights")]
    assert "a step of 4 images of 8 x 8 pixels" in step
    (reading,) = [line for line in lines if "while rows are read, before the first step" in line]
    assert "weights 3 MiB" in reading  # the denoiser is there too, which draws the images of the class
    assert together == 1
    changes = [line.split(" with ")[1] for line in lines if re.match(r"memory: .* with ", line)]
    assert changes == [
        "training.gradient_checkpointing=true",
        "training.gradient_checkpointing=true training.batch_size=1 training.gradient_accumulation=2",
        "training.gradient_checkpointing=true training.batch_size=1 training.gradient_accumulation=2 "
        "model.dtype=bfloat16",
    ]


@_OTHERS
def test_a_device_that_is_not_here_is_planned_with_the_largest_images_that_fit(written, tmp_path, child):
    plan = child(told, recipe_of(tmp_path, written, "sd"), 2**33, "H100 80GB")
    assert plan["published"]
    assert plan["fits"]
    assert plan["largest"]["pixels"] > 512
    assert plan["largest"]["pixels"] % 2 == 0
    assert plan["largest"]["tokens"] is None
    assert plan["together"] > 100
    assert [*plan["beside"]] == ["while rows are read, before the first step"]


def test_reading_for_a_plan_has_the_shapes_of_reading(models, written):
    import torch
    from PIL import Image

    from afina.train.recipe.sections import ModelSection
    from afina.train.tasks.diffusion.captions import PipelineReader
    from afina.train.tasks.diffusion.shapes_read import ShapeReader

    real = PipelineReader.of(str(models["sd"]), ModelSection(path=""))
    shapes = ShapeReader.of(str(written["sd"]), ModelSection(path=""))
    image = Image.effect_noise((8, 8), 90).convert("RGB")
    for theirs, ours in (
        (real.latents([image]), shapes.latents([image])),
        (real.captions(["a"]), shapes.captions(["a"])),
    ):
        assert {k: (v.shape, v.dtype) for k, v in theirs[0].items()} == {
            k: (v.shape, v.dtype) for k, v in ours[0].items()
        }
    assert not shapes.frozen
    assert shapes.latents([image])[0]["means"].untyped_storage().nbytes() == 4
    trained = ShapeReader.of(str(written["sd"]), ModelSection(path="", train_text_encoder=True)).captions(["a wall"])
    assert trained[0]["tokens_of_text_encoder"].dtype == torch.long
