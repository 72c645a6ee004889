"""One run in a process of its own: `python -m afina.compare.worker FOLDER` does the job in FOLDER/job.json.

Standard output carries one JSON object a line: `{"progress": [step, steps]}` and `{"value": [step, loss]}`; what went
wrong goes to standard error. `result.json` is written last.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import AfinaError
from ..train.recipe.sections import Recipe
from ..train.report.events import Progress, Reporter, Stage

JOB, RESULT, MODEL = "job.json", "result.json", "model"
REFUSED = 2
"""Exit code where the job cannot be done as it was asked for."""
_PROBES = 4
"""How often a trial tells its loss."""
_CURVE_POINTS = 200


class Recorder(Reporter):
    """Measures a run as it passes its stages."""

    def __init__(self, trial: bool, tell: Callable[[dict[str, Any]], None]) -> None:
        self.trial, self.tell = trial, tell
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

        trainer = parts["trainer"]
        trainer.args.save_strategy = SaveStrategy.NO  # a comparison's run starts anew when it was cut off
        if self.trial:
            self.found["values"] = []
            trainer.add_callback(_probe(parts, self._value))
        else:
            with as_it_came(parts["recipe"], trainer.model, parts["data"].tasks):
                self.found["forgetting"] = {"before": general_loss(parts)}
        self.peak.start()
        self.clocks = time.process_time(), time.monotonic()

    def _value(self, step: int, loss: float) -> None:
        self.found["values"].append([step, loss])
        self.tell({"value": [step, loss]})

    def _trained(self, parts: Mapping[str, Any]) -> None:
        from ..evidence.items import general_loss, held_out_loss, quality

        cpu, wall = time.process_time() - self.clocks[0], time.monotonic() - self.clocks[1]
        self.found |= {"cpu_s": round(cpu, 2), "wall_s": round(wall, 2), "memory_mb": self.peak.above_base_mb()}
        if self.trial:
            self.found["loss"] = held_out_loss(parts)
            return
        self.tell({"measuring": True})
        self.found["forgetting"]["after"] = general_loss(parts)
        self.found |= quality(parts)
        self.found["device"] = str(parts["trainer"].model.device)


def _probe(parts: Mapping[str, Any], tell: Callable[[int, float], None]) -> Any:
    """A callback that tells the held-out loss on the way, so that a bad trial can be stopped early."""
    from transformers import TrainerCallback

    from ..evidence.items import held_out_loss

    class Probe(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            every = max(1, state.max_steps // _PROBES)
            if state.global_step % every == 0 and state.global_step < state.max_steps:
                tell(state.global_step, held_out_loss(parts))

    return Probe()


def measured(folder: Path, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Do the job in `folder` and return its result.

    Raises:
        AfinaError: the recipe cannot be run.
    """
    from ..train.loop.run import run

    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    recorder = Recorder(job["trial"], tell)
    started = time.monotonic()
    shutil.rmtree(folder / MODEL, ignore_errors=True)  # left by a run that was cut off
    done = run(Recipe.model_validate(job["recipe"]), recorder)
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
    whole = not (done.folder / "adapter_config.json").is_file()
    if job["trial"] or whole:  # an adapter is small enough to be kept; a whole model of every seed is not
        shutil.rmtree(done.folder)
    return {**out, "at_once": job["at_once"], "total_s": round(time.monotonic() - started, 1)}


def _history(folder: Path) -> list[list[float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [[line["step"], line["loss"]] for line in lines if "loss" in line]


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, however it went."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> int:
    """The process's whole life; the exit code is 0, or 2 for a job that is refused."""
    from ..train.report.results import write_json

    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as events:
        os.dup2(2, 1)  # whatever a library prints must not come between the events

        def tell(event: dict[str, Any]) -> None:
            events.write(json.dumps(event) + "\n")
            events.flush()

        try:
            result = measured(folder, tell)
        except AfinaError as error:
            tell({"refused": " ".join(str(error).splitlines())})
            return REFUSED
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    write_json(folder / RESULT, {**result, "key": job["key"]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
