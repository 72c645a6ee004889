"""What a model can be trained to do: a file each, behind one small contract (`base.Task`).

Whoever needs to know what differs between tasks asks `named(recipe.task)`; nothing else compares a task's name. A task
is a file here and a row of `recipe.task_types`; it knows how rows are encoded and answers judged, but no loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..recipe.task_types import known_task
from .alignment.grpo import GRPO
from .alignment.kto import KTO
from .alignment.orpo import ORPO
from .alignment.preference import Preference
from .alignment.reward import Reward
from .audio.audio_classification import AudioClassification
from .audio.speech_recognition import SpeechRecognition
from .base import Predictions, Task
from .causal_lm import CausalLM
from .diffusion.text_to_image import TextToImage
from .extractive_qa import ExtractiveQA
from .image_text_to_text import ImageTextToText
from .pretraining import Pretraining
from .sentence_embeddings import Embeddings
from .seq2seq import Seq2Seq
from .sequence_classification import SequenceClassification
from .token_classification import TokenClassification
from .vision.image_classification import ImageClassification

_KINDS: tuple[type[Task], ...] = (
    CausalLM, SequenceClassification, Seq2Seq, TokenClassification, Preference, Reward, Pretraining, KTO,
    ExtractiveQA, GRPO, ORPO, Embeddings, ImageTextToText, ImageClassification,
    AudioClassification, SpeechRecognition, TextToImage,
)  # fmt: skip
TASKS: Mapping[str, Task] = MappingProxyType({kind.name: kind() for kind in _KINDS})


def named(name: str) -> Task:
    """The task of that name.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    return TASKS[known_task(name)]


__all__ = ["TASKS", "Predictions", "Task", "named"]
