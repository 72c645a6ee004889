"""A page that follows a run: one HTML file that needs nothing else, written anew while the run goes on.

A page that was opened from a file may fetch nothing, not even another file. So the numbers are in the page, which is
replaced as a whole, and an open page loads itself again; what was chosen and where one had scrolled to outlast that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ...plan.usage import told_bytes, told_seconds
from .events import Progress, Reporter, Span, Stage
from .output import REPORT
from .sampled import as_pictures

EVERY = 2.0
"""Seconds between two versions of the page."""
_MOST_POINTS = 1500
_PLACE = "/*DATA*/"


def live_path(directory: str) -> Path:
    """The page of a run: beside its folder, which may be replaced at the end."""
    folder = Path(directory).expanduser().absolute()
    return folder.with_name(f"{folder.name}.live.html")


class Live(Reporter):
    """Passes on to another reporter what a run says, and keeps the page."""

    def __init__(self, inner: Reporter, path: Path) -> None:
        self.inner, self.path = inner, path
        self.folder: Path | None = None
        self.about = ""
        self.state = Progress("", 0, 0)
        self.training = Progress("training", 0, 0)
        self.begun: tuple[float, int] | None = None
        """When training began here, and what was done by then."""
        self.speed: list[tuple[int, float]] = []
        self.memory: list[tuple[int, float]] = []
        self.written = 0.0

    def note(self, text: str) -> None:
        """Passed on; the plan is the page's second line."""
        if text.startswith("plan: "):
            self.about = text.removeprefix("plan: ")
        self.inner.note(text)

    def detail(self, text: str) -> None:
        """Passed on."""
        self.inner.detail(text)

    def warn(self, text: str) -> None:
        """Passed on."""
        self.inner.warn(text)

    def examples(self, examples: list[list[Span]]) -> None:
        """Passed on."""
        self.inner.examples(examples)

    def reached(self, stage: Stage, parts: Mapping[str, Any]) -> None:
        """Passed on; once all stands, the page begins."""
        if stage == "ready":
            self.folder = Path(str(parts["trainer"].args.output_dir))
            self.inner.note(f"live page: {self.path.as_uri()}")
            self.write()
        self.inner.reached(stage, parts)

    def progress(self, state: Progress) -> None:
        """Passed on, and shown before long."""
        self.inner.progress(state)
        self.state = state
        if state.stage == "training":
            self.training = state
            if self.begun is None:
                self.begun = (time.monotonic(), state.done)
            for series, value in ((self.speed, state.tokens_per_s), (self.memory, state.memory)):
                if value is not None:
                    series.append((state.done, value))
        if self.folder is not None and time.monotonic() - self.written >= EVERY:
            self.write()

    def write(self, ended: str = "") -> None:
        """The page as things stand; `ended` says how the run came to its end, if it did."""
        text = files("afina.train.report").joinpath("live.html").read_text(encoding="utf-8")
        # A script's text may hold anything but what ends it.
        values = json.dumps(self._values(ended), ensure_ascii=False).replace("<", "\\u003c")
        partial = self.path.with_name(f".{self.path.name}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text.replace(_PLACE, values), encoding="utf-8")
        partial.replace(self.path)
        self.written = time.monotonic()

    def finish(self, folder: Path | None, ended: str) -> None:
        """The last version of the page, if there ever was one.

        Args:
            folder: where the run's files are now; None where they are gone or where they were.
        """
        if self.folder is not None:
            self.folder = folder or self.folder
            self.write(ended)

    def _values(self, ended: str) -> dict[str, Any]:
        assert self.folder is not None
        lines = self._metrics()

        def series(key: str) -> list[tuple[int, float]]:
            return thinned([(line["step"], line[key]) for line in lines if _is_number(line.get(key))])

        mib = [(step, value / 2**20) for step, value in self.memory]
        return {
            "name": self.path.name.removesuffix(".live.html"), "about": self.about, "running": not ended,
            "refresh_ms": round(1000 * EVERY), "step": self.training.done, "steps": self.training.total,
            "facts": self._facts(ended, lines), "samples": self._samples(), **self._mistakes(),
            "drawn": as_pictures(self.folder),
            "series": {"loss": series("loss"), "held_out": series("eval_loss"), "rate": series("learning_rate"),
                       "norm": series("grad_norm"), "speed": thinned(self.speed), "memory": thinned(mib)},
        }  # fmt: skip

    def _facts(self, ended: str, lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
        now = self.training
        doing = f"{self.state.stage} {self.state.done}/{self.state.total}" if self.state.stage else "beginning"
        facts = [("state", ended or doing), ("step", f"{now.done} of {now.total}")]
        if not ended and self.begun is not None and self.begun[1] < now.done < now.total:
            each = (time.monotonic() - self.begun[0]) / (now.done - self.begun[1])
            facts.append(("time left", told_seconds(each * (now.total - now.done))))
        for key, name in (("loss", "loss"), ("eval_loss", "held-out loss")):
            last = next((line[key] for line in reversed(lines) if _is_number(line.get(key))), None)
            facts += [(name, f"{last:.4g}")] if last is not None else []
        last = next((line for line in reversed(lines) if "loss" in line), {})
        facts += [(key.replace("/", " on "), f"{value:.4g}") for key, value in last.items() if key.startswith("loss/")]
        if now.tokens_per_s is not None:
            facts.append(("tokens/s", f"{now.tokens_per_s:,.0f}"))
        if now.memory is not None:
            facts.append(("memory", told_bytes(now.memory)))
        return facts

    def _metrics(self) -> list[dict[str, Any]]:
        assert self.folder is not None
        path = self.folder / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return [json.loads(line) for line in text.splitlines() if line.strip()]

    def _samples(self) -> list[tuple[str, str, str, str]]:
        """Prompt, what was expected, and the answers before and after."""
        assert self.folder is not None
        report = _read(self.folder / REPORT)
        before = (report.get("before") or _read(self.folder / "before.json")).get("samples", [])
        after = (report.get("after") or {}).get("samples", [])
        answers = [sample["got"] for sample in after] + [""] * len(before)
        return [(s["prompt"], s["expected"], s["got"], got) for s, got in zip(before, answers, strict=False)]

    def _mistakes(self) -> dict[str, Any]:
        """What went wrong after training, and which labels were taken for which."""
        assert self.folder is not None
        after = _read(self.folder / REPORT).get("after") or {}
        table = after.get("confusion")
        off = sum(n for label, row in (table or {}).items() for answer, n in row.items() if answer != label)
        wrong = [(s["prompt"], s["expected"], s["got"]) for s in after.get("wrong", [])]
        return {"wrong": wrong, "wrong_in_all": max(off, len(wrong)), "confusion": table}


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Of many points as many as a page can show, evenly, the last one among them."""
    stride = -(-len(points) // _MOST_POINTS)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and value == value and abs(value) != float("inf")


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
