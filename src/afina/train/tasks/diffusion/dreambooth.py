"""DreamBooth's prior preservation (Ruiz et al., 2022, arXiv 2208.12242): beside a subject's images, images of what it
is one of, made by the base before it learns, so that the words for those keep their meaning."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ....cache import cache_dir, make_once, sha256
from ....devices.place import place
from ....errors import RecipeError
from ...base.pipelines.part_files import weights_of
from ...conversations.image_files import opened
from ...data.encode import Encoded
from ...data.readers.media_rows import IMAGES
from ...recipe.sections import Recipe
from ...report.events import Progress, Reporter
from .captions import PipelineReader
from .denoiser import Denoiser, dtype_of
from .drawing import as_png, drawn
from .image_captions import PRIOR
from .shapes_read import ShapeReader

AT_ONCE = 8


def check_prior(recipe: Recipe) -> None:
    """Refuse settings of prior preservation that do not go together.

    Raises:
        RecipeError: names the setting.
    """
    data = recipe.data
    if data.class_images is not None and data.class_prompt is None:
        raise RecipeError("images of a class need its caption", where="data.class_prompt", got=None,
                          fix="data.class_prompt='a photo of a dog'")  # fmt: skip
    if data.class_prompt is not None and data.instance_prompt is None:
        raise RecipeError("a class is kept beside a subject, which has one caption", where="data.instance_prompt",
                          got=None, fix="data.instance_prompt='a photo of sks dog'")  # fmt: skip


def with_prior(recipe: Recipe, train: Encoded, reader: PipelineReader, reporter: Reporter) -> Encoded:
    """Every item with an image of the class beside it; as many items as there are of whichever are more.

    Raises:
        DataError: an image of the class cannot be read.
        RecipeError: the folder has none.
    """
    prompt = str(recipe.data.class_prompt)
    if isinstance(reader, ShapeReader) and recipe.data.class_images is None:  # they are not made for a plan
        found = reader.latents([None] * recipe.data.class_count)
    else:
        found = _of_files(class_files(recipe, reader, reporter), reader, reporter)
    (words,) = reader.captions([prompt])
    count = max(len(train), len(found))
    items = [{**train.items[i % len(train)], PRIOR: {"latents": found[i % len(found)], "words": words}}
             for i in range(count)]  # fmt: skip
    reporter.note(f"prior preservation: {len(found)} images of {prompt!r} beside {len(train)} of the subject")
    return Encoded(items, [train.source[i % len(train)] for i in range(count)], rows=train.rows)


def _of_files(files: Sequence[Path], reader: PipelineReader, reporter: Reporter) -> list[dict[str, Tensor]]:
    """Their latents."""
    found: list[dict[str, Tensor]] = []
    for start in range(0, len(files), AT_ONCE):
        part = files[start : start + AT_ONCE]
        found += reader.latents([opened(str(path), str(path)) for path in part])
        reporter.progress(Progress("reading images of the class", len(found), len(files)))
    return found


def class_files(recipe: Recipe, reader: PipelineReader, reporter: Reporter) -> list[Path]:
    """The images of the class, made where the recipe names no folder.

    Raises:
        RecipeError: the folder is missing, or has no images.
    """
    given = recipe.data.class_images
    folder = Path(given).expanduser() if given is not None else _made(recipe, reader, reporter)
    files = sorted(path for path in folder.iterdir() if IMAGES.fits(path)) if folder.is_dir() else []
    if not files:
        raise RecipeError("no images of the class", where="data.class_images", got=folder,
                          fix="leave it out, and the base makes them")  # fmt: skip
    return files


def _made(recipe: Recipe, reader: PipelineReader, reporter: Reporter) -> Path:
    """Images of the class by the base itself, kept for the next run that needs the same."""
    told = _fingerprint(recipe, reader)
    folder = cache_dir() / "class-images" / told
    if folder.is_dir():
        reporter.note(f"images of the class, made before: {folder}")
        return folder
    prompts = [str(recipe.data.class_prompt)] * recipe.data.class_count

    def make(work: Path) -> None:
        base = Denoiser.from_pretrained(reader.location, dtype=dtype_of(recipe.model), train_text_encoder=False)
        base.to(place(recipe.model.device).name)
        images = drawn(base, prompts, recipe.diffusion, size=reader.size, seed=recipe.training.seed, at_once=AT_ONCE,
                       progress=lambda n: reporter.progress(Progress("making images of the class", n, len(prompts))),
                       )  # fmt: skip
        for number, image in enumerate(images):
            (work / f"{number:05}.png").write_bytes(as_png(image))

    made = make_once(folder, make)
    reporter.note(f"images of the class: {made}")
    return made


def _fingerprint(recipe: Recipe, reader: PipelineReader) -> str:
    """What the images follow from."""
    folder = Path(reader.location)
    files = sorted([*weights_of(folder), *weights_of(folder, "*.json")])
    weights = {str(path.relative_to(folder)): sha256(path) for path in files}
    settings = [recipe.data.class_prompt, recipe.data.class_count, recipe.diffusion.sample_steps,
                recipe.diffusion.guidance, reader.size, recipe.training.seed, recipe.model.dtype]  # fmt: skip
    return hashlib.sha256(json.dumps([weights, settings]).encode()).hexdigest()[:16]
