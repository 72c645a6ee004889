"""What a model can be trained to do: a file each, behind one small contract (`base.Task`).

Whoever needs to know what differs between tasks asks `named(recipe.task)`; nothing else compares a task's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ...errors import RecipeError, did_you_mean
from .base import Predictions, Task
from .causal_lm import CausalLM
from .preference import Preference
from .reward import Reward
from .seq2seq import Seq2Seq
from .sequence_classification import SequenceClassification
from .token_classification import TokenClassification

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (CausalLM(), SequenceClassification(), Seq2Seq(), TokenClassification(), Preference(), Reward())
    }
)


def named(name: str) -> Task:
    """The task of that name.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    if name not in TASKS:
        raise RecipeError("no such task", where="task", got=name, expected=", ".join(TASKS),
                          fix=did_you_mean(name, TASKS))  # fmt: skip
    return TASKS[name]


def of_task_type(task_type: str | None) -> Task:
    """The task that adapters with this `task_type` are made for; causal language models if they do not say."""
    return next((task for task in TASKS.values() if task.task_type == task_type), TASKS[CausalLM.name])


__all__ = ["TASKS", "Predictions", "Task", "named", "of_task_type"]
