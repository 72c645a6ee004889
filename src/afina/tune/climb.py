"""What a search hears of its runs: at each rung every candidate is measured, and some leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..evidence.items import held_out_items, held_out_losses
from ..train.loop.adapt import counts
from ..train.report.descent import descent
from ..train.report.events import Progress, Reporter, Stage
from ..train.tasks import named
from .contender import Contender
from .halving import Leaves, leaving, rungs
from .outcome import ALONE

STAGE = "tuning"


class Climb(Reporter):
    """Hears the runs of a wave of candidates.

    Args:
        others: candidates of former waves, which stand in the comparison too.
        count: how many rungs there are.
        expected: (rows done, rows in all) of the whole search, for its progress.

    Attributes:
        everyone: where the last one of a group is not trained on, all candidates that there are.
    """

    def __init__(
        self, wave: Sequence[Contender], others: Sequence[Contender], count: int, reporter: Reporter,
        expected: Callable[[], tuple[int, int]],
    ) -> None:  # fmt: skip
        self.wave, self.all, self.count = wave, [*others, *wave], count
        self.reporter, self.expected = reporter, expected
        self.everyone: Sequence[Contender] = ()
        self.at = {str(one.folder): one for one in wave}
        self.judged: dict[tuple[str, int], dict[str, Leaves]] = {}

    def warn(self, text: str) -> None:
        """Passed on; other words of so many runs are too many."""
        if "not trained" not in text:  # the result says it
            self.reporter.warn(text)

    def reached(self, stage: Stage, parts: Mapping[str, Any]) -> None:
        """Stand at the rungs of a run, and take its last measures."""
        if stage == "base":
            return
        from transformers.trainer_utils import SaveStrategy

        trainer = parts["trainer"]
        one = self.at[str(Path(parts["recipe"].output.dir).parent)]
        if stage == "ready":
            trainer.args.save_strategy = SaveStrategy.NO  # rungs are saved
            one.record.trainable = counts(trainer.model)[0]
            trainer.add_callback(Rungs(self, one, parts))
            return
        self._trained(one, parts)

    def _trained(self, one: Contender, parts: Mapping[str, Any]) -> None:
        state, record = parts["trainer"].state, one.record
        if stopped(parts["trainer"]) and state.global_step < state.max_steps:
            return
        record.steps = state.global_step
        record.curve = [(line["step"], round(line["loss"], 4)) for line in state.log_history if "loss" in line]
        if not named(one.recipe.task).may_stand_still:
            record.descent = descent([line["loss"] for line in state.log_history if "loss" in line]).as_dict()
        if record.reason:
            record.status = "left"
        else:
            record.status = "done"
            record.losses, record.right = held_out_items(parts)
        one.keep()

    def judge(self, one: Contender, number: int) -> Leaves | None:
        """Why a candidate leaves at a rung; None where it goes on. All of its group have come there by now."""
        key = one.group, number
        if key not in self.judged:
            pool = [o for o in self.all if o.group == one.group and number in o.record.rungs]
            losses = {o.name: o.record.rungs[number][1] for o in pool}
            self.judged[key] = leaving(losses)
            if (last := self._last_left(one.group, self.judged[key])) in losses:
                self.judged[key][last] = Leaves(ALONE)
            self._tell(one, number, {name: sum(found) / len(found) for name, found in losses.items()})
        return self.judged[key].get(one.name)

    def _last_left(self, group: str, leaves: Mapping[str, Leaves]) -> str:
        """The only one of a group that is left, of all candidates; none where a former wave trained one to its end."""
        own = [o for o in self.everyone if o.group == group]
        left = [o.name for o in own if not (o.record.status or o.record.reason or o.name in leaves)]
        return left[0] if len(left) == 1 and all(o.record.status != "done" for o in own) else ""

    def _tell(self, one: Contender, number: int, losses: Mapping[str, float]) -> None:
        judged = self.judged[one.group, number]
        gone = [o.name for o in self.wave if o.name in judged and judged[o.name].reason != ALONE]
        best = min(losses, key=lambda name: losses[name])
        words = f"; out: {', '.join(f'{name} ({losses[name]:.3f})' for name in gone)}" if gone else "; all go on"
        words += f"; {ALONE}" if Leaves(ALONE) in judged.values() else ""
        place = f"{one.group}: " if one.group else ""
        step = one.record.rungs[number][0]
        self.reporter.note(f"{place}step {step} of {one.steps}: best {best} (held-out loss {losses[best]:.3f}){words}")

    def moved(self) -> None:
        """A candidate took a step."""
        self.reporter.progress(Progress(STAGE, *self.expected()))


class Rungs(TrainerCallback):  # type: ignore[misc]
    """Measures a run at each rung, waits there for the others, and ends it where it is to leave."""

    def __init__(self, climb: Climb, one: Contender, parts: Mapping[str, Any]) -> None:
        self.climb, self.one, self.parts = climb, one, parts
        self.steps, self.passed = rungs(one.steps, climb.count), 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """At a rung, or behind one that a run which goes on had come to before it was cut off."""
        record = self.one.record
        record.steps = state.global_step
        self.climb.moved()
        while self.passed < len(self.steps) and self.steps[self.passed] <= state.global_step:
            if control.should_training_stop:  # a signal came
                return
            number = self.passed
            if number not in record.rungs:
                record.rungs[number] = state.global_step, held_out_losses(self.parts)
                self.one.keep()
            self.parts["meet"](number)
            if stopped(self.parts["trainer"]):  # while it waited: not all have come here
                control.should_save = control.should_training_stop = True
                return
            self.passed += 1
            control.should_save = True
            leaves = self.climb.judge(self.one, number)
            if leaves is not None:
                record.reason, record.worse_than = leaves.reason, leaves.worse_than
                control.should_training_stop, control.should_save = True, False
                return


def stopped(trainer: Any) -> bool:
    """Whether a signal asked a run for its end."""
    from ..train.loop.steps.stopping import GracefulStop

    return any(isinstance(c, GracefulStop) and c.received is not None for c in trainer.callback_handler.callbacks)
