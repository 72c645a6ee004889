"""The unmodified transformers Trainer, set up from a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...devices.ranks import size
from ...errors import RecipeError
from ..data.encode import Data
from ..recipe.sections import Recipe
from ..report.events import Reporter
from ..tasks import named
from .sharing import share_steps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .steps.callbacks import MetricsLog
    from .steps.stopping import GracefulStop


@dataclass(frozen=True)
class Setup:
    """A trainer, and the callback that its logs are read from."""

    trainer: Any
    metrics: MetricsLog
    stop: GracefulStop


def make_trainer(
    recipe: Recipe,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    work: Path,
    learning_rate: float,
    reporter: Reporter,
) -> Setup:
    """The Trainer for `model`, a PeftModel, which it takes because afina stands in for `peft` by now."""
    from transformers import EarlyStoppingCallback, PrinterCallback
    from transformers.integrations import TensorBoardCallback

    from .steps.by_set import tell_by_set
    from .steps.callbacks import CompleteCheckpoints, FiniteGuard, MethodSteps, MetricsLog, ProgressReport
    from .steps.random_states import measure_apart
    from .steps.stopping import GracefulStop

    stop = GracefulStop()
    board = TensorBoardCallback()
    board.logging_dir = str(work / "tensorboard")
    metrics = MetricsLog(work / "metrics.jsonl")
    task = named(recipe.task)
    guard = FiniteGuard(model, task.may_stand_still)
    callbacks = [
        guard, MethodSteps(model), metrics, ProgressReport(reporter), CompleteCheckpoints(), board, stop
    ]  # fmt: skip
    if recipe.training.early_stopping is not None:
        if recipe.evaluation.every is None:
            raise RecipeError("early stopping needs held-out losses", where="training.early_stopping",
                              expected="evaluation.every=STEPS")  # fmt: skip
        callbacks.append(EarlyStoppingCallback(recipe.training.early_stopping))
    arguments = task.arguments(recipe, work, learning_rate)
    trainer = task.trainer(recipe, model, tokenizer, data, arguments)
    # Not every trainer of TRL takes groups of an optimizer, but all are made of the one that does.
    trainer.optimizer_cls_and_kwargs = _layerwise(recipe, arguments, model, learning_rate)
    tell_by_set(trainer, task, data.train, reporter)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.remove_callback(PrinterCallback)
    measure_apart(trainer)
    if size() > 1:
        share_steps(trainer)
    return Setup(trainer, metrics, stop)


def _layerwise(recipe: Recipe, arguments: Any, model: Any, learning_rate: float) -> tuple[Any, dict[str, Any]] | None:
    """The optimizer with its groups by depth; None leaves both to the Trainer.

    Raises:
        RecipeError: the optimizer makes groups of its own.
    """
    from transformers import Trainer

    from ...layerwise import layerwise_parameter_groups

    t = recipe.training
    if t.layerwise_decay is None:
        return None
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    if not isinstance(kind, type) or {"params", "model", "optimizer_dict"} & set(options):
        raise RecipeError("this optimizer makes groups of its own", where="training.optimizer", got=t.optimizer,
                          fix="leave layerwise_decay out, or take adamw_torch")  # fmt: skip
    groups = layerwise_parameter_groups(model, learning_rate, t.layerwise_decay, t.weight_decay)
    return kind, {**options, "params": groups}
