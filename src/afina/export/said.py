"""What the adapter itself says, against which every export is held: greedy text of 20 prompts, and logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.caches import cache_name, cache_of
from ..train.data.encode import token_ids
from ..train.tasks.base import Trained

TEXTS = (
    "The capital of France is", "I love this so much, thank you!", "def add(a, b):\n    return",
    "On Monday it rained all day, and nobody came.", "1 2 3 4 5", "¿Dónde está la estación?",
    "What a terrible film.", "Water boils at", "Once upon a time there was a", "She sells sea shells by the",
    "The quick brown fox", "import numpy as np\n", "Dear Sir or Madam,", "2 + 2 =", "Die Katze sitzt auf dem",
    "My phone died again :(", "To be, or not to be:", "Roses are red,", "The train to London leaves at 17:45",
    "Best day ever!!!",
)  # fmt: skip
"""Text of several kinds; what matters is that both sides see the same."""
NEW_TOKENS = 12


@dataclass(frozen=True)
class Said:
    """What a language model says.

    Attributes:
        prompts: as the model reads them.
        prompt_ids: their tokens.
        ids: of each prompt, the greedy tokens that follow; the end of an answer does not end them.
        last: of each prompt, the logits of what follows it: (vocabulary).
    """

    prompts: list[str]
    prompt_ids: list[list[int]]
    ids: list[list[int]]
    last: list[Tensor]


@dataclass(frozen=True)
class Held:
    """How what a target said differs from what the adapter says.

    Attributes:
        same: share of the prompts with the same text.
        regret: over all tokens that the target chose, the most by which the adapter's own logit for it lies below the
            adapter's largest there, relative to the largest logit; 0 where the text is the same.
        logprob: largest difference of the chosen tokens' log-probabilities; None where the target gives none.
        relative: the same, relative to the largest logit.
        logits: largest difference of the logits behind the prompts, relative to the largest; None as above.
    """

    same: float
    regret: float
    logprob: float | None
    relative: float
    logits: float | None

    @property
    def difference(self) -> float:
        """The largest of all, relative to the largest logit; what is held against the tolerance."""
        return max(self.regret, self.relative, self.logits or 0.0)


def say(trained: Trained, count: int = len(TEXTS), new_tokens: int = NEW_TOKENS) -> Said:
    """What a trained language model says to the first `count` texts, as its prompts."""
    prompter, model = trained.prompter, trained.model
    prompts = [prompter.wrap(prompter.asked(text)) for text in TEXTS[:count]]
    prompt_ids = [token_ids(prompter, text, first=True) for text in prompts]
    told = [_greedy(model, ids, new_tokens) for ids in prompt_ids]
    return Said(prompts, prompt_ids, [ids for ids, _ in told], [last for _, last in told])


@torch.no_grad()
def _greedy(model: Any, ids: list[int], count: int) -> tuple[list[int], Tensor]:
    """Greedy tokens behind `ids`, and the logits of the first."""
    model.eval()
    out: list[int] = []
    given, cache, last = torch.tensor([ids], device=model.device), None, torch.empty(0)
    name = cache_name(model.forward)
    for _ in range(count):
        made = model(input_ids=given, **{name: cache}, use_cache=True)
        cache, logits = cache_of(made), made.logits[0, -1].float().cpu()
        last = last if out else logits
        out.append(int(logits.argmax()))
        given = torch.tensor([out[-1:]], device=model.device)
    return out, last


@torch.no_grad()
def held(
    model: Any, said: Said, ids: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]] | None = None,
    last: Sequence[Tensor] | None = None,
) -> Held:  # fmt: skip
    """Hold what a target said against the adapter.

    Args:
        model: the adapter's model, or the same merged.
        ids: of each prompt, the tokens that the target chose.
        logprobs: their log-probabilities there.
        last: the target's logits behind each prompt: (vocabulary).
    """
    model.eval()
    regret, worst, relative = 0.0, 0.0, 0.0
    for i, chosen in enumerate(ids):
        given = [*said.prompt_ids[i], *chosen]
        logits_TV = model(input_ids=torch.tensor([given], device=model.device)).logits[0].float().cpu()
        logits_TV = logits_TV[len(said.prompt_ids[i]) - 1 : -1]
        own_T = logits_TV.gather(1, torch.tensor(chosen)[:, None])[:, 0]
        largest = logits_TV.abs().max().clamp_min(1e-12)
        regret = max(regret, _number((logits_TV.amax(1) - own_T).max() / largest))
        if logprobs is not None:
            theirs = torch.tensor(logprobs[i])
            apart = (own_T - logits_TV.logsumexp(1) - theirs).abs().max()
            worst, relative = max(worst, _number(apart)), max(relative, _number(apart / largest))
    same = sum(list(a) == list(b) for a, b in zip(said.ids, ids, strict=True)) / len(said.ids)
    return Held(same, regret, None if logprobs is None else worst, relative,
                None if last is None else _apart(said.last, last))  # fmt: skip


def _apart(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    return max(
        _number((a - b[: len(a)]).abs().max() / a.abs().max().clamp_min(1e-12))
        for a, b in zip(expected, got, strict=True)
    )


def _number(value: Tensor) -> float:
    """What is not a number counts as infinitely different."""
    out = float(value)
    return out if out == out else float("inf")
