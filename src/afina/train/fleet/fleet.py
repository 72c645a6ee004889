"""Several runs on one base in one process, each with the files, losses and adapter that it has alone.

Their trainers are the ones that they have alone, with samplers, optimizers, schedules, clipping, checkpoints and random
states of their own. Only the body of the base is run for all of them at once: in each round the rows of all that wait
there make one batch, and the gradients of all go back through it together.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...devices.memory_use import trim
from ...errors import AfinaError, ConfigError, RecipeError, StoppedError
from ...kernels.frozen import kept_in
from ...kernels.speed import speed_up
from ...methods.baselines.full import FullConfig
from ..base.given_base import loaded_by
from ..data.encoded_once import encoded_in
from ..loop.run import Result, run
from ..recipe.sections import Recipe
from ..recipe.settings import method_config
from ..report.events import Reporter
from ..report.interrupts import ENDING, hand_back, listen
from ..tasks import named
from .in_turn import Turn, take_turns
from .member import Backward, Forward, Meeting, Member, Refused, Trial
from .shared_base import SharedBase, sharing
from .shared_pass import SharedPass

NOBODY = "nobody was beside it"


@dataclass(frozen=True)
class Trained:
    """What became of one of several runs.

    Attributes:
        name: of the run, what its folder does not share with the others'.
        result: as `run` gives it; None where it ended in an error.
        error: what ended it.
        alone: why it had passes of its own; empty where it shared them.
        shared, own: how many training passes it shared, and how many it had to itself.
    """

    name: str
    result: Result | None
    error: AfinaError | None
    alone: str
    shared: int
    own: int


def check(recipes: Sequence[Recipe]) -> None:
    """Refuse runs that have no base in common, or share a folder.

    Raises:
        RecipeError: names what differs.
    """
    if not recipes:
        raise RecipeError("no recipe to train", where="recipes")
    for key in ("task", "model"):
        kinds = {str(getattr(recipe, key)) for recipe in recipes}
        if len(kinds) > 1:
            raise RecipeError("runs on one base need one in common", where=key, got=" and ".join(sorted(kinds))[:200])
    folders = [recipe.output.dir for recipe in recipes]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise RecipeError("two runs of one folder", where="output.dir", got=twice, fix="give each its own")


def not_begun(exit_code: int) -> StoppedError:
    """What a run ends in whose turn had not come when a signal asked for the end."""
    return StoppedError("stopped before the run began: nothing is lost", fix="run it again", exit_code=exit_code)


def names(recipes: Sequence[Recipe]) -> list[str]:
    """What the runs' folders do not share."""
    folders = [Path(recipe.output.dir).absolute() for recipe in recipes]
    shared = Path(os.path.commonpath([folder.parent for folder in folders]))
    return [folder.relative_to(shared).as_posix() for folder in folders]


class Fleet:
    """The runs, their base, and the passes that they share.

    Args:
        base: one that other runs had before.
        called: the names of the runs, where they are some of more.
        alone: why all have passes of their own; empty where those that can share them.
    """

    def __init__(
        self, reporter: Reporter, base: SharedBase | None = None, called: Sequence[str] | None = None, alone: str = ""
    ) -> None:  # fmt: skip
        self.reporter, self.base, self.called, self.alone = reporter, base or SharedBase(), called, alone
        self.stopping: int | None = None
        self.joint: SharedPass | None = None
        self.members: list[Member] = []
        self.fast = False
        self.left: list[str] = []
        """Runs that have ended, whose adapters are to go once no pass that they shared is to be gone back through."""

    def run(
        self, recipes: Sequence[Recipe], *, overwrite: bool, resume: Sequence[bool], crashes: bool = False
    ) -> list[Trained]:  # fmt: skip
        """Until all have ended.

        Args:
            resume: of each whether it goes on from its last checkpoint.
            crashes: take what is no error of ours as the end of that run alone.
        """
        turns = []
        self.fast = all(named(recipe.task).fast and recipe.training.fast for recipe in recipes)
        for number, (name, recipe, again) in enumerate(
            zip(self.called or names(recipes), recipes, resume, strict=True)
        ):
            alone = self.alone or (NOBODY if len(recipes) == 1 else "")
            member = Member(name, f"run{number}", self.reporter, self.join, alone)

            def job(recipe: Recipe = recipe, member: Member = member, again: bool = again) -> Result:
                if self.stopping is not None:
                    raise not_begun(128 + self.stopping)
                whole = isinstance(method_config(recipe), FullConfig)  # it writes into the base's own weights
                try:
                    with ExitStack() as stack:
                        stack.enter_context(encoded_in(self.base.rows))
                        if not whole:
                            stack.enter_context(loaded_by(self.base.load))
                            stack.enter_context(kept_in(self.base.kept))
                        return run(recipe, member, overwrite=overwrite, resume=again)
                finally:
                    member.trainer = member.open = None
                    self.left.append(member.key)
                    gc.collect()  # a trainer and its model know each other

            turns.append(Turn(number, job))
            self.members.append(member)
            member.turn = turns[-1] if len(recipes) > 1 else None
        if len(turns) == 1:  # nobody to wait for: no thread with buffers of its own, and it hears signals itself
            turns[0].work()
        else:
            before = listen(self._stop, (*ENDING, signal.SIGINT))
            try:
                take_turns(turns, self.serve)
            finally:
                hand_back(before)
        for member, turn in zip(self.members, turns, strict=True):
            if crashes and isinstance(turn.error, Exception) and not isinstance(turn.error, AfinaError):
                told = (str(turn.error).splitlines() or [""])[0]
                turn.error = AfinaError("crashed", got=f"{type(turn.error).__name__}: {told}")
            if turn.error is not None and not isinstance(turn.error, AfinaError):
                turn.error.add_note(f"in the run {member.name}, which shared {member.passes[0]} passes")
                raise turn.error
        return [
            Trained(m.name, t.result, t.error if isinstance(t.error, AfinaError) else None, m.alone, *m.passes)
            for m, t in zip(self.members, turns, strict=True)
        ]

    def _stop(self, number: int) -> None:
        """Let every run end after its step, as a signal lets one; those that have not begun do not begin."""
        self.stopping = number
        for member in self.members:
            member.stop(number)

    def join(self, member: Member, body: nn.Module) -> str:
        """Put a run's adapters on the shared body; why that cannot be, or nothing."""
        if touched := self.base.touched():
            return f"the base's own weights are written ({touched[0]})"
        if self.joint is None:
            assert self.base.first is not None
            base = sharing(self.base.first)
            if self.fast:
                speed_up(base)
            self.joint = SharedPass(getattr(base, base.base_model_prefix))
        try:
            self.joint.join(member.key, body)
        except ConfigError as error:
            self.joint.leave(member.key)
            return str(error).splitlines()[0]
        return ""

    def serve(self, waiting: Sequence[Turn]) -> dict[Turn, Any]:
        """Run what can be run of what they wait for; forward passes first, so that many go back at once."""
        if self.joint is not None and not any(isinstance(t.request, Backward) for t in waiting):
            while self.left:
                self.joint.leave(self.left.pop())
        trials = [t.request for t in waiting if isinstance(t.request, Trial)]
        if trials:
            tried = {_turn(request.member): self._try(request) for request in trials}
            trim()  # threads have heaps of their own: what a trial leaves there no shared pass can take
            return tried
        forwards = [t.request for t in waiting if isinstance(t.request, Forward)]
        if forwards:
            return self._forward(forwards)
        requests = [t.request for t in waiting if isinstance(t.request, Backward)]
        if not requests:
            meetings = [t.request for t in waiting if isinstance(t.request, Meeting)]
            first = min(request.place for request in meetings)
            return {_turn(request.member): None for request in meetings if request.place == first}
        pairs = [(out[k], cut[k].grad) for r in requests for out, cut in [(r.out, r.given)] for k in out]
        pairs = [(out, grad) for out, grad in pairs if grad is not None and out.requires_grad]
        if pairs:
            torch.autograd.backward([out for out, _ in pairs], [grad for _, grad in pairs])
        return {_turn(r.member): None for r in requests}

    def _forward(self, requests: Sequence[Forward]) -> dict[Turn, Any]:
        answers: dict[Turn, Any] = {}
        for kind in dict.fromkeys(r.kind for r in requests):
            group = [r for r in requests if r.kind == kind]
            outs: list[Any] = [None] * len(group)
            if len(group) > 1:
                assert self.joint is not None
                with torch.enable_grad():
                    outs = self.joint([r.member.key for r in group], [r.given for r in group])
            answers |= {_turn(r.member): out for r, out in zip(group, outs, strict=True)}
        return answers

    def _try(self, request: Trial) -> Any:
        """What a run's rows are among others, or why they cannot be there."""
        assert self.joint is not None
        try:
            return self.joint.among_others(request.member.key, request.given)
        except Exception as error:  # whatever it is, the run goes on by itself
            self.joint.leave(request.member.key)
            return Refused((str(error).splitlines() or [type(error).__name__])[0])


def _turn(member: Member) -> Turn:
    assert member.turn is not None
    return member.turn
