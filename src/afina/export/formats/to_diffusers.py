"""LoRA of a pipeline in one file, as diffusers loads it, or as kohya's scripts and ComfyUI do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from ...compat import stand_in
from ...errors import MergeError, NotMergeable
from ...train.base.pipelines.pipeline_folder import without_bars
from ...train.tasks.base import Known
from .. import kohya
from ..contract import LOW_RANK, Comparison, Format, Subject
from ..factors import Factor, factors_of
from ..merged import compare, encoded, logits


class Diffusers(Format):
    """`pytorch_lora_weights.safetensors`, which `load_lora_weights` of a pipeline finds in its folder."""

    name: ClassVar[str] = "diffusers"
    target: ClassVar[str] = "diffusers"
    holds: ClassVar[str] = LOW_RANK
    writes: ClassVar[bool] = False
    module: ClassVar[str] = "diffusers"
    program: ClassVar[str] = ""
    file: ClassVar[str] = "pytorch_lora_weights.safetensors"

    def foreseen(self, known: Known, *, as_lora: bool = False) -> str | None:
        if known.task.loader != "DiffusionPipeline":
            return f"it is for pipelines that make images, not {known.task.name}"
        return super().foreseen(known, as_lora=as_lora)

    def refusal(self, subject: Subject) -> str | None:
        if (why := self.foreseen(subject.trained)) is not None:
            return why
        try:
            _by_part(subject)
        except NotMergeable as error:
            return (
                f"{self.target} holds low-rank updates of linear layers and convolutions; {error.where}: {error.what}"
            )
        return None

    def write(self, subject: Subject, folder: Path) -> None:
        """Write the file."""
        if subject.outputs is None:
            subject.outputs = logits(subject.trained.model, encoded(subject.trained))
        parts = {part: (subject.base.parts[part], found) for part, found in _by_part(subject).items()}
        # Kohya's scripts name SDXL's layers as its own implementation does, whose blocks have two ResNets each.
        usual = subject.base.parts[subject.base.family.denoiser].config.get("layers_per_block") == 2
        original = self.name == "kohya" and usual and "text_encoder_2" in subject.base.family.encoders
        kohya.write(folder / self.file, parts, layout=self.name, original=original)

    def check(self, subject: Subject, folder: Path) -> Comparison:
        """Let a fresh pipeline load the file, and compare what its denoiser predicts.

        Raises:
            MergeError: diffusers cannot load it.
        """
        import diffusers

        assert subject.outputs is not None
        probes = encoded(subject.trained)
        stand_in()  # diffusers asks peft for LoRA
        kind: Any = type(subject.base)
        fresh = kind.from_pretrained(subject.base.name_or_path, dtype=subject.base.dtype)
        pipeline = fresh.to(subject.base.device).pipeline()
        with without_bars():
            try:
                pipeline.load_lora_weights(str(folder), weight_name=self.file)
            except (ValueError, KeyError, RuntimeError, OSError) as error:
                got = (str(error).splitlines() or [type(error).__name__])[0][:200]
                raise MergeError("diffusers cannot load the file", where=folder / self.file, got=got) from error
        found = compare(subject.outputs, logits(fresh, probes))
        what = f"what the denoiser predicts for {found.probes} captions"
        return Comparison("diffusers", diffusers.__version__, what, difference=found.difference,
                          tolerance=subject.tolerance)  # fmt: skip


class Kohya(Diffusers):
    """`lora.safetensors` with kohya's names and an alpha for each layer; diffusers reads it too."""

    name: ClassVar[str] = "kohya"
    target: ClassVar[str] = "ComfyUI"
    file: ClassVar[str] = "lora.safetensors"

    def refusal(self, subject: Subject) -> str | None:
        if (why := super().refusal(subject)) is not None:
            return why
        if "transformer" in subject.base.parts:
            return "layers of a transformer have other names there, which are not written (--to diffusers)"
        return None


def _by_part(subject: Subject) -> dict[str, dict[str, Factor]]:
    """Part of the pipeline -> path in it -> the update there.

    Raises:
        NotMergeable: the adapter is more than that.
    """
    out: dict[str, dict[str, Factor]] = {}
    for path, factor in factors_of(subject.trained.model, subject.name, kohya.KINDS).items():
        part, _, inner = path.partition(".")
        out.setdefault(part, {})[inner] = factor
    return out
