"""What hangs on the transformers Trainer: guards, metrics, progress, complete checkpoints."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ....core.layers.spreading import trained_whole
from ....core.layers.tensor_parallel import local
from ....devices.memory_use import used_bytes
from ....devices.ranks import is_first, meet, spread
from ....errors import NumericError
from ...report.checkpoints import mark_complete
from ...report.events import Progress, Reporter
from ..method_state import read_method_state, write_method_state
from .finite import first_not_finite, told_rows

_SKIPPED = 24
"""Steps in a row that float16's scaled loss may skip: each halves the scale, which begins at 2 to the 16th."""


class FiniteGuard(TrainerCallback):  # type: ignore[misc]
    """Stops a run whose loss or gradient is not finite, before the optimizer step that would spread it.

    Trainer itself goes on and logs 0.0. The loss is seen by a hook on the model, gradients right before the step. In
    float16 the loss is scaled, and a step whose gradient overflows is skipped for a smaller scale.
    """

    def __init__(self, model: nn.Module, may_stand_still: bool = False) -> None:
        self.model, self.may_stand_still = model, may_stand_still
        self.step = 1
        self.in_a_row = 0
        self.dataset: Any = None
        self.batches: list[dict[str, Any]] = []
        self.hook = model.register_forward_hook(self._check_loss, with_kwargs=True)

    def _check_loss(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if model.training:
            self.batches.append(kwargs)
        loss = getattr(output, "loss", None)
        if loss is not None and not torch.isfinite(loss).all():
            where = self._where(kwargs) if model.training else f"evaluation after step {self.step - 1}"
            # Where the model is spread the others would have to run it too, and they go on.
            first = None if spread() else first_not_finite(model, args, kwargs)
            value = loss.detach().float().mean().item()
            raise NumericError(
                "the loss is not finite, stopped before the update",
                where=where, got=value if first is None else f"{value}; the first tensor that is not: {first}",
                fix="lower training.learning_rate, or use model.dtype=float32; checkpoints before it are kept",
            )  # fmt: skip

    def _where(self, *batches: dict[str, Any]) -> str:
        rows = [told for batch in batches if (told := told_rows(batch, self.dataset))]
        return f"step {self.step}" + (f", rows {', '.join(rows)}" if rows else "")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        train_dataloader: Any = None, **kw: Any,
    ) -> None:  # fmt: skip
        """Remember the data set, which knows where its rows come from."""
        self.dataset = getattr(train_dataloader, "dataset", None)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Remember which step runs."""
        self.step = state.global_step + 1
        self.batches = []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any
    ) -> None:
        """Check every gradient.

        Raises:
            NumericError: one is not finite, or none reaches the adapter.
        """
        trained = [(n, None if p.grad is None else local(p.grad)) for n, p in self.model.named_parameters()
                   if p.requires_grad]  # fmt: skip
        bad = next((name for name, grad in trained if grad is not None and not torch.isfinite(grad).all()), None)
        self.in_a_row = self.in_a_row + 1 if bad is not None else 0
        if bad is not None and args.fp16 and self.in_a_row <= _SKIPPED:
            return
        if bad is not None:
            raise NumericError(
                "the gradient is not finite, stopped before the update",
                where=f"{self._where(*self.batches)}, {bad}",
                fix="lower training.learning_rate, or use model.dtype=float32; checkpoints before it are kept",
            )
        if (
            self.step == 1
            and not self.may_stand_still
            and not any(grad is not None and bool(grad.any()) for _, grad in trained)
        ):
            raise NumericError(
                "no gradient reaches the adapter: every trained tensor has none or only zeros",
                where="step 1",
                fix="check that the adapted layers are used in the model's forward",
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """The step count for messages of the evaluation that follows."""
        self.step = state.global_step + 1


class MetricsLog(TrainerCallback):  # type: ignore[misc]
    """One line of JSON for every log of the Trainer; a resumed run goes on behind its checkpoint's line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history: list[dict[str, Any]] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Keep the lines of the steps that a resumed run does not repeat."""
        if not is_first():
            return
        if self.path.is_file():
            lines = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines() if line.strip()]
            self.history = [line for line in lines if line["step"] <= state.global_step]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in self.history), encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kw: Any,
    ) -> None:
        """Write one line."""
        line = {"step": state.global_step, **(logs or {})}
        self.history.append(line)
        if not is_first():
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class ProgressReport(TrainerCallback):  # type: ignore[misc]
    """Tells the reporter how far the run is, and how fast."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.started = time.monotonic()
        self.tokens_before = 0
        self.loss: float | None = None
        self.predicted = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Start the clock."""
        self.started = time.monotonic()
        self.tokens_before = int(state.num_input_tokens_seen)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kw: Any,
    ) -> None:
        """Remember the loss."""
        self.loss = (logs or {}).get("loss", self.loss)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Report a step."""
        seconds = time.monotonic() - self.started
        tokens = int(state.num_input_tokens_seen) - self.tokens_before
        rate = tokens / seconds if tokens and seconds > 0 else None
        held = used_bytes(args.device)
        self.reporter.progress(Progress("training", state.global_step, state.max_steps, rate, self.loss, held))

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kw: Any,
    ) -> None:
        """Report a batch of the held-out loss."""
        self.predicted += 1
        total = len(eval_dataloader)
        self.reporter.progress(Progress("held-out loss", self.predicted, total))
        if self.predicted >= total:
            self.predicted = 0


class CompleteCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint as whole once all its files are written."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Seal the checkpoint of this step, to which every process adds its random state."""
        meet()
        if is_first():
            mark_complete(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


class MethodSteps(TrainerCallback):  # type: ignore[misc]
    """Calls what a method does around optimizer steps, while the gradients are there (AdaLoRA's budget of ranks), and
    keeps its state in checkpoints."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.update: Any = getattr(model, "update_and_allocate", None)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Go on from a checkpoint, whose adapter and optimizer are loaded by now."""
        if state.global_step:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            read_method_state(self.model, folder, before=False)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Write the state into the checkpoint of this step."""
        if is_first():
            write_method_state(self.model, Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any
    ) -> None:
        """After the optimizer's step, before the gradients are cleared."""
        if self.update is not None:
            self.update(state.global_step + 1)


class SharedSteps(TrainerCallback):  # type: ignore[misc]
    """Of several processes: their gradients meet."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Look before every step; the Trainer would train without, each process for itself.

        Raises:
            NumericError: nothing brings them together.
        """
        wrapped = isinstance(self.trainer.model_wrapped, DistributedDataParallel)
        if not wrapped and (not spread() or trained_whole(self.trainer.model)):
            got = type(self.trainer.model_wrapped).__name__
            raise NumericError("the processes' gradients would not meet", where=f"step {state.global_step + 1}",
                               got=got, expected="DistributedDataParallel")  # fmt: skip
