"""What makes the runs: `python -m afina.compare.worker` reads the folders of jobs, a line each, and does what their
job.json says, one after the other on one base.

Standard output carries one JSON object a line: `{"progress": [step, steps]}`, and at a job's end `{"ended": null}`, or
`{"ended": "why it was refused"}`; what went wrong goes to standard error. `result.json` is written last.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ..errors import AfinaError
from ..train.data.encoded_once import EncodedOnce, encoded_in
from ..train.recipe.sections import Recipe
from ..train.report.events import Progress, Reporter, Stage

JOB, RESULT, MODEL = "job.json", "result.json", "model"
_CURVE_POINTS = 200
Tell = Callable[[dict[str, Any]], None]


class Bases:
    """The base of a worker's runs, which is loaded once; and what it says of itself before any of them."""

    def __init__(self) -> None:
        self.key, self.shared, self.sums = "", None, {}  # type: tuple[str, Any, dict[str, Any]]
        self.general: dict[str, float | None] = {}
        self.rows = EncodedOnce()

    def giving(self, recipe: Recipe) -> AbstractContextManager[None]:
        """While a run loads its base, it gets this one; one that trains the whole model gets its own."""
        from ..methods.baselines.full import FullConfig
        from ..train.base.given_base import loaded_by
        from ..train.fleet.shared_base import SharedBase
        from ..train.recipe.settings import method_config

        key = json.dumps([recipe.task, recipe.model.model_dump(mode="json")])
        if key != self.key:
            self.general, self.rows = {}, EncodedOnce()
        if isinstance(method_config(recipe), FullConfig):  # two copies may not fit
            self.key, self.shared = key, None
            return nullcontext()
        if key != self.key or self.shared is None or not self._intact():
            self.key, self.shared, self.sums = key, SharedBase(), {}
        return loaded_by(self.shared.load)

    def _intact(self) -> bool:
        """Whether the last run left its weights as they were."""
        return not self.sums or (not self.shared.touched() and self.sums == _sums(self.shared.first))

    def keep(self) -> None:
        """Remember what the weights are, before the first run trains on them."""
        if self.shared is not None and self.shared.first is not None and not self.sums:
            self.sums = _sums(self.shared.first)


def _sums(model: Any) -> dict[str, Any]:
    """Of every weight its dtype and its sum, which hardly anything that changes it leaves as it was."""
    import torch

    with torch.no_grad():
        return {name: (tensor.dtype, float(tensor.detach().sum(dtype=torch.float64))) for name, tensor
                in [*model.named_parameters(), *model.named_buffers()]}  # fmt: skip


class Recorder(Reporter):
    """Measures a run as it passes its stages."""

    def __init__(self, bases: Bases, tell: Tell) -> None:
        self.bases, self.tell = bases, tell
        self.found: dict[str, Any] = {}
        self.peak: Any = None
        self.clocks = (0.0, 0.0)

    def progress(self, state: Progress) -> None:
        """Pass training's steps on."""
        if state.stage == "training":
            self.tell({"progress": [state.done, state.total]})

    def reached(self, stage: Stage, parts: Mapping[str, Any]) -> None:
        """Take the measures of a stage."""
        from .peak import Peak

        if stage == "base":
            self.bases.keep()
            self.peak = Peak(parts["model"])
            self.found["base_parameters"] = sum(p.numel() for p in parts["model"].parameters())
        elif stage == "ready":
            self._ready(parts)
        else:
            self._trained(parts)

    def _ready(self, parts: Mapping[str, Any]) -> None:
        from transformers.trainer_utils import SaveStrategy

        from ..evidence.items import general_loss
        from ..train.loop.adapt import as_it_came

        trainer, known = parts["trainer"], self.bases.general
        trainer.args.save_strategy = SaveStrategy.NO  # a comparison's run starts anew when it was cut off
        if "before" not in known:  # it is the base's, whatever lies on it
            with as_it_came(parts["recipe"], trainer.model, parts["data"].tasks):
                known["before"] = general_loss(parts)
        self.found["forgetting"] = dict(known)
        self.peak.start()
        self.clocks = time.process_time(), time.monotonic()

    def _trained(self, parts: Mapping[str, Any]) -> None:
        from ..evidence.items import general_loss, quality

        cpu, wall = time.process_time() - self.clocks[0], time.monotonic() - self.clocks[1]
        self.found |= {"cpu_s": round(cpu, 2), "wall_s": round(wall, 2), "memory_mb": self.peak.above_base_mb()}
        self.tell({"measuring": True})
        self.found["forgetting"]["after"] = general_loss(parts)
        self.found |= quality(parts)
        self.found["device"] = str(parts["trainer"].model.device)


def measured(folder: Path, bases: Bases, tell: Tell) -> dict[str, Any]:
    """Do the job in `folder` and return its result.

    Raises:
        AfinaError: the recipe cannot be run.
    """
    from ..train.loop.run import run

    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    recipe, recorder = Recipe.model_validate(job["recipe"]), Recorder(bases, tell)
    started = time.monotonic()
    shutil.rmtree(folder / MODEL, ignore_errors=True)  # left by a run that was cut off
    with bases.giving(recipe), encoded_in(bases.rows):
        done = run(recipe, recorder)
    report, history = done.report, _history(done.folder)
    out = {
        **recorder.found,
        "trainable": report["parameters"]["trainable"],
        "steps": report["training"]["steps"],
        "tokens": report["training"]["tokens"],
        "descent": report["training"]["descent"],
        "versions": report["versions"],
        "curve": history[:: max(1, len(history) // _CURVE_POINTS)],
        "size_bytes": sum(path.stat().st_size for path in done.folder.glob("*.safetensors")),
    }
    if not (done.folder / "adapter_config.json").is_file():
        shutil.rmtree(done.folder)  # an adapter is small enough to be kept; a whole model of every seed is not
    kept = {key: job[key] for key in ("at_once", "separate", "key")}
    return {**out, **kept, "total_s": round(time.monotonic() - started, 1)}


def _history(folder: Path) -> list[list[float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [[line["step"], line["loss"]] for line in lines if "loss" in line]


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, however it went."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> int:
    """The process's whole life, until there are no more jobs."""
    from ..devices.memory_use import trim
    from ..train.report.results import write_json

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    bases = Bases()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as events:
        os.dup2(2, 1)  # whatever a library prints must not come between the events

        def tell(event: dict[str, Any]) -> None:
            events.write(json.dumps(event) + "\n")
            events.flush()

        for line in sys.stdin:
            folder, refused = Path(line.rstrip("\n")), None
            try:
                result = measured(folder, bases, tell)
            except AfinaError as error:
                refused = " ".join(str(error).splitlines())
            else:
                write_json(folder / RESULT, result)
            gc.collect()
            trim()
            tell({"ended": refused})
    return 0


if __name__ == "__main__":
    sys.exit(main())
