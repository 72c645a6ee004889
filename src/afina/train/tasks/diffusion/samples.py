"""Images along the way: of the recipe's prompts, from the same noise each time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ....devices.ranks import is_first
from ...report.sampled import INDEX, SAMPLES, taken
from .drawing import as_png

if TYPE_CHECKING:
    from PIL.Image import Image


class Samples(TrainerCallback):  # type: ignore[misc]
    """Draws before the first step, every so many steps, and after the last.

    Args:
        draw: gives an image for each of `prompts`.
        every: steps; None: at the ends alone.
    """

    def __init__(self, draw: Callable[[], list[Image]], prompts: list[str], every: int | None) -> None:
        self.draw, self.prompts, self.every = draw, prompts, every

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Before the first step; a run that goes on has them."""
        if not state.global_step:
            self._take(args, 0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Where it is time."""
        last = state.global_step >= state.max_steps
        if last or (self.every is not None and state.global_step % self.every == 0):
            self._take(args, state.global_step)

    def _take(self, args: TrainingArguments, step: int) -> None:
        if not is_first():
            return
        folder = Path(str(args.output_dir)) / SAMPLES
        folder.mkdir(exist_ok=True)
        names = [f"step-{step:06}-{number}.png" for number in range(1, len(self.prompts) + 1)]
        for name, image in zip(names, self.draw(), strict=True):
            (folder / name).write_bytes(as_png(image))
        told = [one for one in taken(folder.parent) if one["step"] < step]
        lines = [json.dumps(one) + "\n" for one in (*told, {"step": step, "prompts": self.prompts, "files": names})]
        (folder / INDEX).write_text("".join(lines), encoding="utf-8")
