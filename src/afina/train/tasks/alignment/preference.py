"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) by TRL's DPOTrainer.

The reference model is the model with its adapter off; in full fine-tuning, a copy of the base. A pair counts as right
where the chosen answer's implicit reward, beta · (log p − log p_reference), is the higher one; a tie counts half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ....errors import DataError
from ...answers.row_losses import TellsRows
from ...data.encode import Data, Encoded, check_vocabulary
from ...data.pairs import pair_of, prompt_text
from ...data.prompts import Prompter
from ...data.rows import Rows
from ...recipe.sections import Recipe
from ...report.events import Span
from ..arguments import training_arguments
from ..base import Job
from .of_pairs import OfPairs
from .reference import HeldToReference, held_to_reference, log_ratios

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_SOURCE = ("prompt_ids", "chosen_ids", "rejected_ids")


class Preference(OfPairs, HeldToReference, TellsRows):
    """Prompts with a chosen and a rejected answer."""

    name: ClassVar[str] = "preference"
    shares: ClassVar[str] = "exactly"
    columns: ClassVar[str] = "prompt, chosen and rejected, as text or messages"
    metric: ClassVar[str] = "reward accuracy"

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
        """TRL's own, on our tokens."""
        from trl import DPOTrainer

        parts = data.train, self.watched(recipe, data)
        return held_to_reference(DPOTrainer, recipe, model, tokenizer, arguments, parts, _SOURCE)

    def margins(self, job: Job, items: list[dict[str, Any]]) -> list[float]:
        """By how much the chosen answer's reward is the higher one."""
        pairs = [(item["prompt_ids"], item[f"{side}_ids"]) for side in ("chosen", "rejected") for item in items]
        ratios = log_ratios(job, pairs)
        chosen, rejected = ratios[: len(items)], ratios[len(items) :]
        return [job.recipe.training.beta * (c - r) for c, r in zip(chosen, rejected, strict=True)]

    def row_losses(self, trainer: Any, batch: Mapping[str, Any], outputs: Sequence[Any]) -> Tensor:
        """-log sigmoid of the margin of each pair, of which the policy spoke first and then the reference."""
        from torch.nn.functional import logsigmoid

        tokens = batch["input_ids"].shape[1] - 1  # virtual tokens stand before the input's own
        policy, reference = (said.log_probs[:, -tokens:].float().sum(1) for said in outputs)
        chosen, rejected = (policy - reference).chunk(2)
        return -logsigmoid(trainer.beta * (chosen - rejected))
