"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) by TRL's DPOTrainer.

The reference model is the model with its adapter off; in full fine-tuning, a copy of the base. A pair counts as right
where the chosen answer's implicit reward, beta · (log p − log p_reference), is the higher one; a tie counts half.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...core.model.peft_model import PeftModel
from ...errors import DataError, RecipeError
from ..answers.judge import preferences
from ..data.encode import Data, Encoded, check_vocabulary
from ..data.pairs import pair_of, prompt_text
from ..data.prompts import Prompter
from ..data.rows import Rows
from ..recipe.sections import Recipe
from ..report.events import Span
from .answering import Answering
from .arguments import refused, training_arguments
from .base import BEFORE, Job
from .of_pairs import OfPairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SOURCE = ("prompt_ids", "chosen_ids", "rejected_ids")


class Preference(OfPairs, Answering):
    """Prompts with a chosen and a rejected answer."""

    name: ClassVar[str] = "preference"
    loader: ClassVar[str] = "AutoModelForCausalLM"
    columns: ClassVar[str] = "prompt, chosen and rejected, as text or messages"
    streams: ClassVar[bool] = True
    groups: ClassVar[bool] = False
    metric: ClassVar[str] = "reward accuracy"

    def labels(self, data: Any, parts: Any) -> None:
        """Pairs have no labels."""

    def prompt(self, prompter: Prompter, rows: Rows, index: int) -> str:
        """The prompt alone, also of rows without answers."""
        return prompt_text(prompter, rows, index)

    def encode(self, rows: Rows, prompter: Prompter, labels: list[str] | None, vocab_size: int) -> Encoded:
        """Tokens of the prompt, of the chosen and of the rejected answer."""
        out, limit = Encoded(rows=rows), prompter.data.max_length
        for index in range(len(rows)):
            pair = pair_of(prompter, rows, index)
            if not pair.prompt:
                fix = "name it, e.g. data.columns={prompt: question} or data.prompt='{question}'"
                raise DataError("a pair has no prompt", where=rows.where(index), expected="a column 'prompt'", fix=fix)
            prompt, chosen, rejected = pair.answers(prompter)
            check_vocabulary([*prompt, *chosen, *rejected], rows.where(index), vocab_size)
            out.truncated += len(prompt) + max(len(chosen), len(rejected)) > limit
            if len(prompt) >= limit:
                out.masked += 1
                continue
            room = limit - len(prompt)
            ids = {"prompt_ids": prompt, "chosen_ids": chosen[:room], "rejected_ids": rejected[:room]}
            out.items.append(ids)
            out.source.append(index)
        out.check_masked(rows, prompter.data)
        return out

    def rendered(
        self, item: dict[str, Any], tokenizer: PreTrainedTokenizerBase, labels: list[str] | None
    ) -> list[Span]:
        """The prompt, and both answers."""
        prompt, chosen, rejected = (str(tokenizer.decode(item[key])) for key in _SOURCE)
        return [Span(prompt, False), Span(chosen, True), Span(" rather than ", False), Span(rejected, True)]

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Chosen answers first, then the rejected ones; `completion_mask` marks the answers."""
        from trl.trainer.dpo_trainer import DataCollatorForPreference

        return DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)

    def arguments(self, recipe: Recipe, work: Path, learning_rate: float) -> Any:
        """TRL's settings."""
        from trl import DPOConfig

        return training_arguments(
            recipe, work, learning_rate, kind=DPOConfig, beta=recipe.training.beta, max_length=recipe.data.max_length
        )

    def trainer(
        self, recipe: Recipe, model: Any, tokenizer: PreTrainedTokenizerBase, data: Data, arguments: Any
    ) -> Any:
        """TRL's own, on our tokens: its own rendering takes other ends of turn."""
        from trl import DPOTrainer

        class OfTokens(DPOTrainer):  # type: ignore[misc]
            def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
                return dataset

        parts = {"train_dataset": as_dataset(data.train, _SOURCE),
                 "eval_dataset": as_dataset(self.watched(recipe, data), _SOURCE)}  # fmt: skip
        with refused("TRL's DPOTrainer"):
            try:
                out = OfTokens(model=model, args=arguments, processing_class=tokenizer, **parts)
            except AttributeError as error:  # it copies adapters by their parameters' names
                raise RecipeError("TRL cannot copy this method's adapter", where="method.type", got=recipe.method.type,
                                  fix="choose another method") from error  # fmt: skip
        # TRL takes a fresh adapter for a trained one, and a copy of that for the reference. Ours is the base itself.
        if isinstance(model, PeftModel) and "ref" in model.peft_config:
            model.delete_adapter("ref")
        return out

    def margins(self, job: Job, items: list[dict[str, Any]]) -> list[float]:
        """By how much the chosen answer's reward is the higher one."""
        trainer = job.trainer
        if job.stage == BEFORE:  # the model still is its own reference
            return [0.0] * len(items)
        policy = preferences(trainer.model, job.prompter, items)
        if trainer.ref_model is None:
            off = trainer.model.disable_adapter() if isinstance(trainer.model, PeftModel) else nullcontext()
            with off:
                reference = preferences(trainer.model, job.prompter, items)
        else:
            reference = preferences(trainer.ref_model, job.prompter, items)
        return [job.recipe.training.beta * (p - r) for p, r in zip(policy, reference, strict=True)]


def as_dataset(part: Encoded | None, columns: tuple[str, ...]) -> Any:
    """The named columns of encoded items, as TRL takes them; None stays None."""
    if part is None:
        return None
    import datasets

    datasets.disable_progress_bars()
    return datasets.Dataset.from_list([{key: item[key] for key in columns} for item in part.items])
