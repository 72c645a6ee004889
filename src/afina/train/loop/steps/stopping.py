"""Ending a run early, after the step that runs: on SIGTERM, SIGHUP or Ctrl-C."""

from __future__ import annotations

import signal
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ....devices.ranks import most
from ....errors import StoppedError
from ...report.interrupts import ENDING, hand_back, listen


class GracefulStop(TrainerCallback):  # type: ignore[misc]
    """The first SIGTERM, SIGHUP or Ctrl-C lets the step finish and saves a checkpoint; the second one ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.before: dict[int, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Listen."""
        self.before = listen(self._receive, (*ENDING, signal.SIGINT))

    def _receive(self, number: int) -> None:
        self.received = number
        self.release()

    def release(self) -> None:
        """Hand the signals back."""
        hand_back(self.before)
        self.before = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Save and stop; of several processes all after the same step."""
        self.received = most(self.received or 0) or None
        if self.received is not None and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def raise_if_stopped(self, step: int, steps: int) -> None:
        """End the command as the signal asked, unless the run was through by then.

        Raises:
            StoppedError: with the exit code that shells give to the signal.
        """
        if self.received is None or step >= steps:
            return
        name = signal.Signals(self.received).name
        raise StoppedError(f"stopped by {name} after step {step} of {steps}; its checkpoint is saved",
                           fix="go on with --resume", exit_code=128 + self.received)  # fmt: skip
