"""Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300) by TRL's GRPOTrainer: several answers are
drawn for a prompt, and those are made likelier whose reward is above their group's mean.

Rewards are checks or the user's own function (`reinforcement.rewards`). What counts is the mean reward of greedy
answers to held-out prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ....core.model.peft_model import PeftModel
from ....errors import DataError, RecipeError
from ...answers.generate import answers
from ...data.encode import Data, Encoded, check_vocabulary, token_ids
from ...data.pairs import Piece
from ...data.prompts import Prompter
from ...data.rows import Rows
from ...recipe.sections import Recipe
from ...report.events import Progress, Span
from ...report.scores import Scores
from ..arguments import refused, training_arguments
from ..job import Around, Job
from .answers_beside import Answers
from .checks import Reward, total
from .reference import HeldToReference, as_dataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SOURCE = ("prompt", "row")


class GRPO(HeldToReference):
    """Prompts, and what tells good answers."""

    name: ClassVar[str] = "grpo"
    shares: ClassVar[str] = "never"
    columns: ClassVar[str] = "prompt, and what the rewards read (answer)"
    may_stand_still: ClassVar[bool] = True

    def encode(self, rows: Rows, prompter: Prompter, labels: list[str] | None, vocab_size: int) -> Encoded:
        """The prompt as TRL takes it, its tokens, and the row for the rewards; a prompt that is too long is dropped."""
        out = Encoded(rows=rows)
        for index in range(len(rows)):
            asked = _asked(prompter, rows, index)
            ids = token_ids(prompter, self.prompt(prompter, rows, index), first=True)
            check_vocabulary(ids, rows.where(index), vocab_size)
            if len(ids) > prompter.data.max_length:
                out.masked += 1
                continue
            out.items.append({"prompt": asked, "prompt_ids": ids, "row": index})
            out.source.append(index)
        out.check_masked(rows, prompter.data)
        return out

    def rendered(
        self, item: dict[str, Any], tokenizer: PreTrainedTokenizerBase, labels: list[str] | None
    ) -> list[Span]:
        """The prompt; the answers are drawn."""
        return [Span(str(tokenizer.decode(item["prompt_ids"])), False), Span("...", True)]

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """None: TRL takes the items as they are."""
        return lambda items: items

    def examples(self, recipe: Recipe, rows: int) -> int:
        """Answers an epoch: several to each prompt, and as many prompts as make whole steps."""
        t, each = recipe.training, recipe.reinforcement.generations
        prompts = max(1, t.batch_size * t.gradient_accumulation // each)
        return rows // prompts * prompts * each

    def check(self, recipe: Recipe) -> None:
        """Rewards are there, and a step's answers are whole groups."""
        r, t = recipe.reinforcement, recipe.training
        total(r.rewards)
        if t.batch_size * t.gradient_accumulation % r.generations:
            raise RecipeError(
                "the answers of a step are no whole groups", where="reinforcement.generations",
                got=f"{r.generations}, of {t.batch_size * t.gradient_accumulation} answers (batch_size times "
                "gradient_accumulation)", fix=f"training.batch_size={r.generations}",
            )  # fmt: skip

    def arguments(self, recipe: Recipe, work: Path, learning_rate: float) -> Any:
        """TRL's settings."""
        from trl import GRPOConfig

        r, best = recipe.reinforcement, {}
        if recipe.evaluation.every is not None:
            best = {"metric_for_best_model": "eval_reward", "greater_is_better": True}
        return training_arguments(
            recipe, work, learning_rate, kind=GRPOConfig, beta=r.kl, num_generations=r.generations,
            max_completion_length=r.answer_tokens, temperature=r.temperature, **best,
            per_device_eval_batch_size=r.generations, include_num_input_tokens_seen="no",
        )  # fmt: skip

    def trainer(
        self, recipe: Recipe, model: Any, tokenizer: PreTrainedTokenizerBase, data: Data, arguments: Any
    ) -> Any:
        """TRL's own; the reference is the model with its adapter off."""
        from trl import GRPOTrainer

        if not self.examples(recipe, len(data.train)):
            raise RecipeError("fewer prompts than a step takes", where="training.batch_size", got=len(data.train),
                              fix="lower it, or raise reinforcement.generations")  # fmt: skip
        train, held_out = data.train, self.watched(recipe, data)
        parts = [part.rows for part in (train, held_out) if part is not None and part.rows is not None]
        with refused("TRL's GRPOTrainer"):
            out = GRPOTrainer(
                model=model, args=arguments, processing_class=tokenizer,
                reward_funcs=_for_trl(total(recipe.reinforcement.rewards), parts),
                train_dataset=as_dataset(train, _SOURCE), eval_dataset=_after(held_out, len(parts[0])),
            )  # fmt: skip
        if isinstance(model, PeftModel) and "ref" in model.peft_config:
            model.delete_adapter("ref")
        return out

    def around(self, recipe: Recipe, location: str, data: Data) -> Around:
        """Answers are drawn for every step, whose batches are made of them."""
        made = Answers(recipe, max(len(item["prompt_ids"]) for item in data.train.items))
        return Around(drawing=made.draw, drawn="answers are drawn", batch=made.batch)

    def score(self, job: Job) -> Scores:
        """The mean reward of greedy answers to held-out prompts."""
        prompts, got, rewards = self._rewarded(job, None)
        samples = tuple((p, f"reward {r:g}", a) for p, a, r in zip(prompts[:3], got, rewards, strict=False))
        return Scores(None, len(rewards), sum(rewards) / len(rewards), samples=samples, metric="mean reward")

    def item_losses(self, job: Job, items: Sequence[dict[str, Any]]) -> list[float]:
        """The negative reward of a greedy answer."""
        return [-reward for reward in self._rewarded(job, [item["row"] for item in items])[2]]

    def items(self, job: Job) -> tuple[list[float], list[float]]:
        """The reward of a greedy answer, and its negative as a loss."""
        rewards = self._rewarded(job, None)[2]
        return [-reward for reward in rewards], rewards

    def _rewarded(self, job: Job, chosen: list[int] | None) -> tuple[list[str], list[str], list[float]]:
        """Prompts, greedy answers and rewards of held-out rows."""
        rows, recipe = job.data.split.held_out, job.recipe
        assert rows is not None
        some = rows if chosen is None else rows.pick(chosen)
        prompts = [self.prompt(job.prompter, some, i) for i in range(len(some))]
        got = answers(
            job.trainer.model, job.prompter, prompts, batch_size=recipe.evaluation.batch_size,
            max_new_tokens=recipe.evaluation.max_new_tokens or recipe.reinforcement.answer_tokens,
            progress=lambda done: job.reporter.progress(Progress(f"answering ({job.stage})", done, len(prompts))),
        )  # fmt: skip
        places = [some.where(i) for i in range(len(some))]
        return prompts, got, total(recipe.reinforcement.rewards)(prompts, got, some.values, places)


def _asked(prompter: Prompter, rows: Rows, index: int) -> Piece:
    """The prompt as TRL takes it, which renders it as we do: text, or messages.

    Raises:
        DataError: the row gives the template what TRL would not pass on.
    """
    talk = prompter.talk(rows, index, prompter.question_format(rows, index), answered=False)
    if talk is None:
        return prompter.plain(rows, index)
    if talk.tools or talk.options:
        raise DataError("tools and options of the chat template are not passed on by TRL's GRPOTrainer",
                        where=talk.where, fix="leave the columns tools and chat_template_kwargs out")  # fmt: skip
    return [{k: v for k, v in m.items() if k != "train"} for m in talk.asked.messages]


def _after(part: Encoded | None, rows: int) -> Any:
    """Held-out items, whose rows come after those to train on."""
    if part is None:
        return None
    return as_dataset(Encoded([{**item, "row": item["row"] + rows} for item in part.items], part.source), _SOURCE)


def _for_trl(reward: Reward, parts: Sequence[Rows]) -> Any:
    """The reward in TRL's words: `row` tells the rows of all parts apart."""
    rows = [row for part in parts for row in part.values]
    places = [part.where(index) for part in parts for index in range(len(part))]

    def rewards(prompts: list[Piece], completions: list[Piece], row: list[int], **others: Any) -> list[float]:
        return reward([_text(p) for p in prompts], [_text(c) for c in completions], [rows[i] for i in row],
                      [places[i] for i in row])  # fmt: skip

    return rewards


def _text(piece: Piece) -> str:
    """Text, or that of the last message."""
    return piece if isinstance(piece, str) else piece[-1]["content"]
