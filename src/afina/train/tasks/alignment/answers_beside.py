"""What GRPO's steps take, on tensors without data: answers as long as they may become, and the drawing of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....core.caches import cache_name, cache_of
from ....plan.trace import Trace
from ....plan.work import Work
from ...recipe.sections import Recipe


@dataclass(frozen=True)
class Answers:
    """Of a run.

    Attributes:
        longest: tokens of its longest prompt.
    """

    recipe: Recipe
    longest: int

    def batch(self, items: list[Mapping[str, Any]]) -> dict[str, Tensor]:
        """What TRL's trainer takes a step of: prompts (rows, tokens) padded to the longest, answers of full length."""
        rows, tokens = len(items), max(len(item["prompt_ids"]) for item in items)
        answer = (rows, self.recipe.reinforcement.answer_tokens)
        out = {
            "prompt_ids": torch.ones(rows, tokens, dtype=torch.long),
            "prompt_mask": torch.ones(rows, tokens, dtype=torch.long),
            "completion_ids": torch.ones(answer, dtype=torch.long),
            "completion_mask": torch.ones(answer, dtype=torch.long),
            "advantages": torch.ones(rows),
            "num_items_in_batch": torch.tensor(rows * answer[1]),
        }
        if self.recipe.reinforcement.kl:
            out["ref_per_token_logps"] = torch.zeros(answer)
        return out

    @torch.no_grad()
    def draw(self, trace: Trace, model: Any) -> Work:
        """The answers of one step, all at once and of full length: the pass of the prompts, of the second tokens, and
        of the last ones; those between take what lies between."""
        training, how = self.recipe.training, self.recipe.reinforcement
        rows = training.batch_size * training.gradient_accumulation
        asked = torch.ones(rows, self.longest, dtype=torch.long)
        with trace.of("temporary"):
            cache, works = None, list[Work]()
            for seen in (asked, asked[:, :1], asked[:, :1]):
                trace.step += 1
                if len(works) == 2:
                    _grow(cache, how.answer_tokens - 2)
                told: Any = model(**{"input_ids": seen, cache_name(model): cache}, use_cache=True, logits_to_keep=1)
                cache = cache_of(told)
                torch.multinomial(told.logits[:, -1].float().softmax(-1), 1)
                works.append(trace.works[trace.step])
        first, second, last = works
        return first + (second + last) * ((how.answer_tokens - 1) / 2)


def _grow(cache: Any, tokens: int) -> None:
    """Let a cache hold more tokens, as so many passes would have left it."""
    for number, layer in enumerate(cache.layers):
        if tokens > 0 and layer.keys is not None:
            shape = (*layer.keys.shape[:-2], tokens)
            cache.update(layer.keys.new_empty(*shape, layer.keys.shape[-1]),
                         layer.values.new_empty(*shape, layer.values.shape[-1]), number)  # fmt: skip
