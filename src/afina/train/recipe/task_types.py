"""The tasks by name, each with the type that a method's config is told (`afina.TaskType`)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from ...errors import RecipeError, did_you_mean

DEFAULT_TASK = "causal_lm"
TASK_TYPES: Mapping[str, str | None] = MappingProxyType(
    {
        DEFAULT_TASK: "CAUSAL_LM",
        "sequence_classification": "SEQ_CLS",
        "seq2seq": "SEQ_2_SEQ_LM",
        "token_classification": "TOKEN_CLS",
        "preference": "CAUSAL_LM",
        "reward": "SEQ_CLS",
        "pretraining": "CAUSAL_LM",
        "kto": "CAUSAL_LM",
        "extractive_qa": "QUESTION_ANS",
        "grpo": "CAUSAL_LM",
        "orpo": "CAUSAL_LM",
        "embeddings": "FEATURE_EXTRACTION",
        "image_text_to_text": "CAUSAL_LM",
        "image_classification": None,
        "audio_classification": None,
        "speech_recognition": None,
        "text_to_image": None,
    }
)
"""An adapter of a type that several tasks have is taken for one of the first of them. There is no type for images
and sounds: as scripts for the reference have it, such adapters name their heads in `modules_to_save`."""

if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[tuple(TASK_TYPES)]


def known_task(name: str) -> str:
    """The name, if there is a task of it.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    if name not in TASK_TYPES:
        raise RecipeError("no such task", where="task", got=name, expected=", ".join(TASK_TYPES),
                          fix=did_you_mean(name, TASK_TYPES))  # fmt: skip
    return name


def of_task_type(task_type: str | None) -> str:
    """The task that adapters with this `task_type` are made for; causal language models if they do not say."""
    return next((task for task, told in TASK_TYPES.items() if told and told == task_type), DEFAULT_TASK)
