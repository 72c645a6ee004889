"""Images of captions: a pipeline of diffusers learns to make them from noise; DreamBooth included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch

from ....devices.place import place
from ....errors import RecipeError
from ...answers.batches import in_batches
from ...answers.judge import check_loss, judging
from ...base.adapter_below import with_adapter_below
from ...base.pipelines.part_files import INDEX
from ...base.pipelines.pipeline_folder import check_pipeline, pipeline_location
from ...conversations.processor import Images
from ...data.encode import Data, Encoded
from ...data.prompts import Prompter
from ...data.readers.media_rows import IMAGES
from ...data.rows import Rows
from ...recipe.sections import DataSection, DiffusionSection, ModelSection, Recipe
from ...report.events import Progress, Reporter, Span
from ...report.sampled import as_lines
from ...report.scores import Scores
from ..base import Around, Job, Predictions, Task, Trained
from .captions import PipelineReader
from .denoiser import Denoiser, dtype_of
from .drawing import as_png, drawn
from .dreambooth import check_prior, with_prior
from .image_captions import NoisyBatches, caption_of, held_still, image_items
from .noising import FIXED
from .shapes_beside import Beside
from .shapes_read import ShapeReader, kept_bytes


class TextToImage(Task):
    """Images with captions; the loss is that of what was mixed into their latents."""

    name: ClassVar[str] = "text_to_image"
    loader: ClassVar[str] = "DiffusionPipeline"
    columns: ClassVar[str] = "image and text, or images and data.instance_prompt"
    groups: ClassVar[bool] = False
    reader_file: ClassVar[str] = INDEX
    medium: ClassVar[str] = "images"
    makes_files: ClassVar[bool] = True
    own_settings: ClassVar[tuple[str, ...]] = (
        "model.train_text_encoder", "data.instance_prompt", "data.class_prompt", "data.class_images",
        "data.class_count", *(f"diffusion.{key}" for key in DiffusionSection.model_fields),
    )  # fmt: skip

    def check(self, recipe: Recipe) -> None:
        """Refuse what this task cannot do."""
        check_prior(recipe)
        if recipe.training.augment:
            raise RecipeError("latents are made once, of images as they are", where="training.augment",
                              got=recipe.training.augment, fix="leave it out, or change the files")  # fmt: skip
        if recipe.model.quantize != "none":
            raise RecipeError("pipelines are trained unquantised", where="model.quantize", got=recipe.model.quantize,
                              fix="leave it out")  # fmt: skip
        if recipe.distributed not in ("auto", "ddp"):
            raise RecipeError("a pipeline is whole in each process", where="distributed", got=recipe.distributed,
                              expected="ddp")  # fmt: skip
        if recipe.data.task_column is not None or recipe.data.labels is not None:
            key = "data.labels" if recipe.data.task_column is None else "data.task_column"
            raise RecipeError("images that are made have neither labels nor tasks", where=key, fix="leave it out")

    def check_location(self, section: ModelSection) -> None:
        """Refuse what is no pipeline."""
        check_pipeline(section)

    def location(self, section: ModelSection, reporter: Reporter) -> str:
        """The pipeline's folder."""
        return pipeline_location(section, reporter)

    def width(self, location: str, section: ModelSection) -> None:
        """Of a denoiser there is no one width."""
        return

    def reader(self, location: str, section: ModelSection, reporter: Reporter) -> Any:
        """The pipeline's tokenizers and frozen parts."""
        return PipelineReader.of(location, section)

    def shape_reader(self, location: str, section: ModelSection, reporter: Reporter) -> Any:
        """The pipeline's tokenizers, and its parts' configs."""
        return ShapeReader.of(location, section)

    def sketched(
        self, section: ModelSection, location: str, labels: list[str] | None, tokenizer: Any, layers: int | None = None
    ) -> Any:
        """The parts that train, by their configs."""
        return Denoiser.sketched(location, dtype_of(section), section.train_text_encoder)

    def around(self, recipe: Recipe, location: str, data: Data) -> Around:
        """Rows are read by the VAE and frozen text encoders, which also draw with the denoiser; latents, and what is
        said of captions, are kept."""
        items = [*data.train.items, *(data.held_out.items if data.held_out is not None else ())]
        beside = Beside(ShapeReader.of(location, recipe.model), recipe, len(items))
        return Around(
            kept_bytes(items), beside.reader.mapped, beside.read, beside.draw if recipe.diffusion.samples else None
        )

    def prompter(self, data: DataSection, tokenizer: Any) -> Prompter:
        """One that reads images."""
        return Prompter(data, tokenizer, Images(tokenizer))

    def _load(self, section: ModelSection, location: str, labels: list[str] | None, tokenizer: Any) -> Any:
        tokenizer.release()
        made = Denoiser.from_pretrained(location, dtype=dtype_of(section), device_map={"": place(section.device).name},
                                        train_text_encoder=section.train_text_encoder)  # fmt: skip
        return with_adapter_below(section, made)

    def encode(self, rows: Rows, prompter: Prompter, labels: list[str] | None, vocab_size: int) -> Encoded:
        """Latents, and what the frozen text encoders say of captions."""
        out = image_items(rows, prompter)
        held_still(out.items)
        return out

    def training_items(self, recipe: Recipe, train: Encoded, prompter: Prompter, reporter: Reporter) -> Encoded:
        """Of noise that is drawn; beside each an image of the class, where there is one."""
        for item in train.items:
            del item["still"]
        if recipe.diffusion.caption_dropout:
            prompter.tokenizer.captions([""])  # as long as what reads it is here
        if recipe.data.class_prompt is None:
            return train
        return with_prior(recipe, train, prompter.tokenizer, reporter)

    def rendered(self, item: dict[str, Any], tokenizer: Any, labels: list[str] | None) -> list[Span]:
        """The file and its caption."""
        return [Span(f"{item['caption']} -> ", False), Span(item["where"], True)]

    def collator(self, tokenizer: Any) -> Any:
        """Stacks latents and captions."""
        return NoisyBatches(tokenizer)

    def arguments(self, recipe: Recipe, work: Path, learning_rate: float) -> Any:
        """The trainer's settings; it has no tokens to count, and no labels."""
        out = super().arguments(recipe, work, learning_rate)
        out.include_num_input_tokens_seen, out.label_names = "no", ["timesteps"]
        out.per_device_eval_batch_size = -(-recipe.evaluation.batch_size // FIXED)
        return out

    def trainer(self, recipe: Recipe, model: Any, tokenizer: Any, data: Data, arguments: Any) -> Any:
        """Leaves captions out, and draws the recipe's prompts along the way."""
        from .samples import Samples  # loads what trains

        out = super().trainer(recipe, model, tokenizer, data, arguments)
        settings = recipe.diffusion
        base: Denoiser = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.caption_dropout = settings.caption_dropout
        empty = tokenizer.captions([""])[0] if settings.caption_dropout else None
        tokenizer.release()
        out.data_collator = NoisyBatches(tokenizer, settings.prior_weight, empty)
        if settings.samples:
            out.add_callback(Samples(
                lambda: drawn(model, settings.samples, settings, size=tokenizer.size, seed=recipe.training.seed),
                settings.samples, settings.sample_every,
            ))  # fmt: skip
        return out

    def card(self, folder: Path) -> list[str]:
        """The images of the recipe's prompts."""
        return as_lines(folder)

    def item_losses(self, job: Job, items: Sequence[dict[str, Any]]) -> list[float]:
        """Of held-out images, each at all of its timesteps."""
        return self._losses(job.trainer.model, job.prompter, items, job.recipe.evaluation.batch_size, job.reporter,
                            f"measuring ({job.stage})")  # fmt: skip

    def _losses(
        self, model: Any, prompter: Prompter, items: Sequence[dict[str, Any]], batch_size: int, reporter: Reporter,
        stage: str,
    ) -> list[float]:  # fmt: skip
        collate = self.collator(prompter.tokenizer)

        def judge(part: list[dict[str, Any]]) -> list[float]:
            batch = {k: v.to(model.device) for k, v in collate(part).items()}
            return list(model(**batch).losses.view(len(part), -1).mean(1).tolist())

        def progress(done: int) -> None:
            reporter.progress(Progress(stage, done, len(items)))

        with judging(model):  # each comes once for each of its timesteps
            return list(chain.from_iterable(in_batches(items, -(-batch_size // FIXED), judge, progress)))

    def position_losses(self, given: Mapping[str, Any], output: Any) -> tuple[Any, Any, int]:
        """A loss for each image of the rows, without those of the class."""
        rows = len(output.losses) // (2 if "weights" in given else 1)
        return torch.arange(rows), output.losses[:rows].detach(), rows

    def score(self, job: Job) -> Scores:
        """The held-out loss at fixed timesteps and noise, of each image too."""
        assert job.data.held_out is not None
        losses = self.item_losses(job, job.data.held_out.items)
        mean = sum(losses) / len(losses)
        check_loss(mean)
        return Scores(mean, len(losses), losses=tuple(losses))

    def told(self, trained: Trained, text: str, max_new_tokens: int) -> str:
        """Where the image of a prompt was put: beside those that are in the current folder already."""
        number = next(n for n in range(1, 10**6) if not Path(f"image-{n}.png").exists())
        (image,) = self._drawn(trained, [text], 1)
        Path(f"image-{number}.png").write_bytes(as_png(image))
        return f"image-{number}.png"

    def probe(self, prompter: Prompter, text: str, device: Any) -> dict[str, Any]:
        """The text as a caption, of latents that it draws."""
        reader: Any = prompter.tokenizer
        generator = torch.Generator().manual_seed(len(text))
        words = {k: v[None] for k, v in reader.captions([text])[0].items()}
        means, noise = (torch.randn(1, *reader.latent_shape, generator=generator) for _ in range(2))
        frames = torch.tensor([[reader.size, reader.size, 0, 0, reader.size, reader.size]], dtype=torch.float32)
        given = {"means": means, "noise": noise, "frames": frames, "timesteps": reader.noising.fixed()[:1], **words}
        return {k: v.to(device) for k, v in given.items()}

    def _drawn(self, trained: Trained, prompts: Sequence[str], at_once: int, reporter: Reporter | None = None) -> Any:
        said = reporter or Reporter()
        reader: Any = trained.tokenizer
        return drawn(trained.model, prompts, trained.recipe.diffusion, size=reader.size, at_once=at_once,
                     seed=trained.recipe.training.seed,
                     progress=lambda done: said.progress(Progress("drawing", done, len(prompts))))  # fmt: skip

    def predict(
        self, trained: Trained, rows: Rows, reporter: Reporter, batch_size: int, max_new_tokens: int | None
    ) -> Predictions:
        """An image of every row's text, in a column `prediction` that names its file; and of rows that have an image
        already its loss."""
        prompts = [caption_of(rows, i, trained.prompter) for i in range(len(rows))]
        images = self._drawn(trained, prompts, batch_size, reporter)
        names = [f"{number:04}.png" for number in range(1, len(rows) + 1)]
        out = [{**row, "prediction": name} for row, name in zip(rows.values, names, strict=True)]
        files = {n: as_png(i) for n, i in zip(names, images, strict=True)}
        if any(IMAGES.column not in row for row in rows.values):
            return Predictions(out, None, files)
        items = image_items(rows, trained.prompter).items
        held_still(items)
        trained.tokenizer.release()
        losses = self._losses(trained.model, trained.prompter, items, batch_size, reporter, "measuring")
        return Predictions(out, Scores(sum(losses) / len(losses), len(losses)), files)
