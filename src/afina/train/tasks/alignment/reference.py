"""What tasks share that hold a model to a reference: the model with its adapter off; in full fine-tuning, a copy of the
base."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from ....core.model.peft_model import PeftModel
from ....errors import RecipeError
from ...answers.judge import answer_log_probs
from ...data.encode import Encoded
from ...recipe.sections import Recipe
from ..answering import Answering
from ..arguments import refused
from ..base import BEFORE, Job

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HeldToReference(Answering):
    """A task whose model writes answers, which have no labels, and is held to a reference."""

    loader: ClassVar[str] = "AutoModelForCausalLM"
    streams: ClassVar[bool] = True
    groups: ClassVar[bool] = False
    has_reference: ClassVar[bool] = True

    def labels(self, data: Any, parts: Any) -> None:
        """Answers are judged, not named."""


def as_dataset(part: Encoded | None, columns: tuple[str, ...]) -> Any:
    """The named columns of encoded items, as TRL takes them; None stays None."""
    if part is None:
        return None
    import datasets

    datasets.disable_progress_bars()
    return datasets.Dataset.from_list([{key: item[key] for key in columns} for item in part.items])


def held_to_reference(
    kind: type[Any], recipe: Recipe, model: Any, tokenizer: PreTrainedTokenizerBase, arguments: Any,
    parts: tuple[Encoded, Encoded | None], columns: tuple[str, ...],
) -> Any:  # fmt: skip
    """TRL's trainer `kind` on our tokens, `columns` of the training and of the held-out part: its own rendering takes
    other ends of turn.

    Raises:
        RecipeError: TRL refuses a setting, or cannot work with the method or with new tokens.
    """

    if recipe.model.new_tokens and isinstance(model, PeftModel):
        raise RecipeError(
            "new tokens cannot train in this task: TRL reads the output head's own weight", where="model.new_tokens",
            got=recipe.task, fix="train them by causal_lm, and name that run as model.adapter",
        )  # fmt: skip

    class OfTokens(kind):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    train, held_out = (as_dataset(part, columns) for part in parts)
    with refused(f"TRL's {kind.__name__}"):
        try:
            out = OfTokens(model=model, args=arguments, processing_class=tokenizer, train_dataset=train,
                           eval_dataset=held_out)  # fmt: skip
        except AttributeError as error:  # it copies adapters by their parameters' names
            raise RecipeError("TRL cannot copy this method's adapter", where="method.type", got=recipe.method.type,
                              fix="choose another method") from error  # fmt: skip
    # TRL takes a fresh adapter for a trained one, and a copy of that for the reference. Ours is the base itself.
    if isinstance(model, PeftModel) and "ref" in model.peft_config:
        model.delete_adapter("ref")
    return out


def log_ratios(job: Job, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """log p − log p_reference of every answer after its prompt, for one batch of pairs of token ids."""
    if job.stage == BEFORE:  # the model still is its own reference
        return [0.0] * len(pairs)
    trainer = job.trainer
    policy = answer_log_probs(trainer.model, job.prompter, pairs)
    if trainer.ref_model is not None:
        reference = answer_log_probs(trainer.ref_model, job.prompter, pairs)
    else:
        with trainer.model.disable_adapter() if isinstance(trainer.model, PeftModel) else nullcontext():
            reference = answer_log_probs(trainer.model, job.prompter, pairs)
    return [p - r for p, r in zip(policy, reference, strict=True)]
