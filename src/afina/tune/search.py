"""A search from end to end: candidates, their runs in a fleet, and the result as plain values."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.files.overwriting import refuse_occupied
from ..errors import AfinaError, RecipeError, StoppedError
from ..evidence.prepare import Shared, digest, key_of, prepare
from ..train.fleet.fleet import Fleet, Trained
from ..train.fleet.room import in_turn
from ..train.loop.plans.planning import fitting
from ..train.recipe.sections import Recipe
from ..train.recipe.settings import load_recipe, method_config
from ..train.report.checkpoints import look
from ..train.report.events import Reporter
from .climb import Climb
from .contender import Contender, contender, slug
from .draw import Draw
from .halving import rungs
from .outcome import outcome
from .space import Axis, size, space

MODEL = "model"
_MOST = 16
"""Candidates at once, however many fit."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        space: texts as `space.space` takes them.
        overrides: the recipe's own.
        most: how many candidates there may be.
        rungs: at how many steps they are compared on the way.
        at_once: how many are in the fleet at the same time, while the others wait; without it as many as fit.
        share_passes: whether they share passes through the base; without it they do but on a processor.
        out: folder of everything.
    """

    source: str
    space: tuple[str, ...]
    overrides: tuple[tuple[str, str], ...] = ()
    most: int = 16
    rungs: int = 3
    at_once: int | None = None
    share_passes: bool | None = None
    max_steps: int | None = None
    out: Path | None = None


def check(request: Request) -> list[Axis]:
    """The space that is asked for.

    Raises:
        RecipeError: a number or the space makes no search.
    """
    limits = {"--candidates": (request.most, 2), "--rungs": (request.rungs, 0), "--at-once": (request.at_once, 1),
              "--max-steps": (request.max_steps, 1)}  # fmt: skip
    for option, (value, least) in limits.items():
        if value is not None and value < least:
            raise RecipeError("too small", where=option, got=value, expected=f">= {least}")
    return space(request.space)


def tune(request: Request, reporter: Reporter) -> tuple[Path, dict[str, Any]]:
    """Search, and return the folder and what was found.

    Raises:
        AfinaError: the recipe or the space is wrong. A candidate that cannot be trained is no error but says why.
        StoppedError: a signal asked for the end; the same request goes on from there.
    """
    axes = check(request)
    base = load_recipe(request.source, request.overrides)
    if request.max_steps is not None:
        base.training.max_steps = request.max_steps
    folder = request.out or Path(f"{base.output.dir}-tuned")
    refuse_occupied(folder, "a search", (folder / "data").is_dir(), overwrite=True)
    draw = Draw(axes, request.most)
    shared = prepare(base, folder / "data", reporter)
    how = f"Optuna's sampler takes {request.most}" if draw.sampled else "all are tried"
    count = "infinitely many" if size(axes) == float("inf") else f"{size(axes):.0f}"
    reporter.note(f"space: {count} candidates; {how}")
    search = Search(shared, folder / "runs", request.rungs, request.at_once, reporter,
                    alone=in_turn(base.model.device, request.share_passes))  # fmt: skip
    number = 0
    for wave in draw.waves():
        made = [contender(request.source, request.overrides, choice, shared.rows[0], request.max_steps)
                for choice in draw.choices(wave)]  # fmt: skip
        lacking = [axis.key for axis in axes if not any(axis.key in one.used for one in made)]
        if lacking and not draw.sampled:  # those that were drawn may lack it by chance
            raise RecipeError("no candidate's method has this setting", where=f"--space {lacking[0]}")
        fresh = search.different(made)
        search.planned = sum(draw.waves()) - number - wave
        number += wave
        search.run(fresh)
        draw.tell(fresh)
    found = outcome(base, shared, search.done)
    asked = {"recipe": request.source, "overrides": [f"{k}={v}" for k, v in request.overrides],
             "space": list(request.space), "sampled": draw.sampled}  # fmt: skip
    return folder, {**asked, **found}


@dataclass
class Search:
    """Candidates on their way to a result.

    Attributes:
        shared: the rows.
        folder: of the candidates' own folders.
        count: how many rungs there are.
        at_once: how many are in the fleet at the same time; without it as many as fit, and not more than `_MOST`.
        alone: why all have passes of their own, in turn; empty where those that can share them.
        done: those that were trained, or left or failed.
        now, waiting: those that are being trained, and those that will be.
        planned: how many more will come, for the time left.
        seed: of all candidates, in place of the recipe's.
        until_alone: whether the last one of a group is taken without being trained to the end.
    """

    shared: Shared
    folder: Path
    count: int
    at_once: int | None
    reporter: Reporter
    alone: str = ""
    done: list[Contender] = field(default_factory=list)
    now: list[Contender] = field(default_factory=list)
    waiting: list[Contender] = field(default_factory=list)
    planned: int = 0
    seed: int | None = None
    until_alone: bool = False
    everyone: list[Contender] = field(default_factory=list)

    def different(self, made: Sequence[Contender]) -> list[Contender]:
        """Those with settings that no other one has."""
        seen = [one.settings for one in self.done]
        out = []
        for one in made:
            if one.settings not in seen:
                seen.append(one.settings)
                out.append(one)
        return out

    def run(self, made: Sequence[Contender]) -> None:
        """Train candidates until each is through, has left or failed; a fleet at a time.

        Raises:
            StoppedError: a signal asked for the end.
        """
        if self.alone and not self.everyone:
            self.reporter.note(f"candidates take turns on one base: {self.alone}")
        self.waiting, self.everyone = list(made), [*self.everyone, *made]
        for one in self.waiting:
            placed = self._placed(one)
            how = [self.count, self.until_alone, one.group]
            key = {"run": key_of(placed, self.shared, True), "search": how}
            one.at((self.folder / f"{slug(one.name)}-{digest(key)}").absolute())
        together = self.at_once or self._fitting() if self.waiting else 1
        while self.waiting:
            fleet = _together(self.waiting, together)
            self.waiting = [one for one in self.waiting if one not in fleet]
            self.now = fleet
            if todo := [one for one in fleet if not one.record.status]:
                self._fly(todo, [*self.done, *(one for one in fleet if one.record.status)])
            self.done += fleet
            self.now = []

    def _fitting(self) -> int:
        """How many of the candidates fit at once, by the one with the largest batches, or rank among those."""
        todo = [one for one in self.waiting if not one.record.status and not _whole(one)]
        if len(todo) < 2:
            return 1
        largest = max(todo, key=_size)
        out = min(_MOST, fitting(self._placed(largest), in_turn=bool(self.alone)) or _MOST)
        if out < len(todo):
            self.reporter.note(f"{out} of {len(todo)} candidates are trained at once (--at-once)")
        return out

    def _placed(self, one: Contender) -> Recipe:
        seed = one.recipe.training.seed if self.seed is None else self.seed
        out = self.shared.placed(one.recipe, seed, Path("unset"), trial=True)
        out.training.max_steps, out.training.keep_checkpoints = one.steps, 1
        return out

    def _fly(self, todo: Sequence[Contender], others: Sequence[Contender]) -> None:
        recipes, resume = [], []
        for one in todo:
            recipe = self._placed(one)
            recipe.output.dir = str(one.folder / MODEL)
            recipes.append(recipe)
            resume.append(look(one.folder / MODEL).whole is not None)
        climb = Climb(todo, others, self.count, self.reporter, self._expected)
        if self.until_alone:
            climb.everyone = self.everyone
        started = time.monotonic()
        try:
            found = Fleet(climb, alone=self.alone).run(recipes, overwrite=False, resume=resume, crashes=True)
        finally:
            _share_out(time.monotonic() - started, todo)
        self._end(todo, found)

    def _end(self, todo: Sequence[Contender], found: Sequence[Trained]) -> None:
        stopped: list[AfinaError] = []
        for one, trained in zip(todo, found, strict=True):
            one.record.alone = trained.alone
            if isinstance(trained.error, StoppedError):
                stopped.append(trained.error)
                continue
            if trained.error is not None:
                one.record.status, one.record.reason = "failed", " ".join(str(trained.error).splitlines())
                self.reporter.note(f"{one.name}: failed, {one.record.reason}")
            one.keep()
            shutil.rmtree(one.folder / MODEL, ignore_errors=True)
        if stopped:
            code = stopped[0].exit_code if isinstance(stopped[0], StoppedError) else 130
            raise StoppedError(f"stopped with {len(stopped)} of {len(todo)} candidates on their way; nothing is lost",
                               fix="run it again, it goes on", exit_code=code)  # fmt: skip

    def _expected(self) -> tuple[int, int]:
        """Rows of steps done, and how many there will be if half of the candidates leave at each rung."""
        known = [*self.done, *self.now]
        done = sum(one.record.steps * one.rows_per_step for one in known)
        more = sum(self._left(one) for one in [*self.now, *self.waiting])
        typical = known[0] if known else None
        fresh = self.planned * _halved(0, typical.steps, self.count) * typical.rows_per_step if typical else 0
        return done, round(done + more + fresh)

    def _left(self, one: Contender) -> float:
        if one.record.status or one.record.reason:
            return 0.0
        return _halved(one.record.steps, one.steps, self.count) * one.rows_per_step


def _share_out(seconds: float, made: Sequence[Contender]) -> None:
    """Divide a fleet's time among its candidates, by the rows that they took."""
    rows = [one.record.steps * one.rows_per_step for one in made]
    for one, taken in zip(made, rows, strict=True):
        one.record.seconds += seconds * (taken / sum(rows) if any(rows) else 1 / len(made))
        one.keep()


def _halved(step: int, steps: int, count: int) -> float:
    """Steps that a candidate is expected to take from here, where one of two leaves at each rung."""
    out, share, at = 0.0, 1.0, step
    for end in [*(r for r in rungs(steps, count) if r >= step), steps]:
        out, share, at = out + share * (end - at), share / 2, end
    return out


def _together(waiting: Sequence[Contender], at_once: int) -> list[Contender]:
    """The next ones that fly together; one that trains the whole model has a copy of it, and flies alone."""
    if _whole(waiting[0]):
        return [waiting[0]]
    return [one for one in waiting if not _whole(one)][:at_once]


def _size(one: Contender) -> tuple[int, int]:
    return one.recipe.training.batch_size, getattr(method_config(one.recipe), "r", None) or 0


def _whole(one: Contender) -> bool:
    from ..methods.baselines.full import FullConfig

    return isinstance(method_config(one.recipe), FullConfig)
