"""Prompt tuning: trained embeddings before the input's own.

    x = [P; E(ids)],   P of shape (virtual tokens, dim)

Lester, Al-Rfou, Constant 2021, arXiv 2104.08691 (starts: random, sampled from the vocabulary, or the words of a text).
Trainable: tokens · dim (encoder-decoder models store twice as many rows, as the reference does; the encoder uses the
first half). Not mergeable. Models: any that take `inputs_embeds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import nn

from ...core.config import register
from ...core.prompts.encoder import PromptLearningConfig, PromptSite, TablePromptEncoder, embedding_of
from ...errors import ConfigError

PUBLIC = ("PromptTuningInit", "PromptEmbedding")


class PromptTuningInit(str, Enum):
    """Where the virtual tokens start.

    Attributes:
        TEXT: at the embeddings of a text, repeated or cut to the number of tokens.
        SAMPLE_VOCAB: at the embeddings of random tokens.
        RANDOM: from N(0, 1).
    """

    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    RANDOM = "RANDOM"


@dataclass(kw_only=True)
class PromptTuningConfig(PromptLearningConfig):
    """Configuration of prompt tuning; fields as in the reference.

    Attributes:
        prompt_tuning_init: where the tokens start: a `PromptTuningInit` or its name.
        prompt_tuning_init_text: of TEXT: the text.
        tokenizer_name_or_path: of TEXT: the tokenizer of the base.
        tokenizer_kwargs: of TEXT: for the tokenizer's `from_pretrained`.
    """

    prompt_tuning_init: PromptTuningInit | str = PromptTuningInit.RANDOM
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None

    needs: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "prompt_tuning_init_text": ("prompt_tuning_init", "TEXT"),
    }
    default_learning_rate: ClassVar[float] = 2e-2
    rate_exponent: ClassVar[float] = 0.65

    def __post_init__(self) -> None:
        super().__post_init__()
        known = [i.value for i in PromptTuningInit]
        if str(getattr(self.prompt_tuning_init, "value", self.prompt_tuning_init)) not in known:
            raise ConfigError("unknown start", where="prompt_tuning_init", got=self.prompt_tuning_init,
                              expected=", ".join(known))  # fmt: skip
        self.prompt_tuning_init = PromptTuningInit(self.prompt_tuning_init)
        if self.prompt_tuning_init == PromptTuningInit.TEXT:
            for key in ("prompt_tuning_init_text", "tokenizer_name_or_path"):
                if not getattr(self, key):
                    raise ConfigError("needed for prompt_tuning_init=TEXT", where=key)
        elif self.tokenizer_kwargs:
            raise ConfigError("it has no effect without prompt_tuning_init=TEXT", where="tokenizer_kwargs")
        if "trust_remote_code" in (self.tokenizer_kwargs or {}):
            raise ConfigError("a config cannot allow foreign code", where="tokenizer_kwargs.trust_remote_code")


def starting_table(site: PromptSite, config: PromptTuningConfig) -> nn.Parameter:
    """The table (tokens, dim) that the config's start asks for.

    While an adapter is being loaded the start is not computed: the file holds the table, and nothing that the config
    names is opened.
    """
    if config.inference_mode or config.prompt_tuning_init == PromptTuningInit.RANDOM or site.vocabulary is None:
        return site.normal(site.tokens, site.dim)
    if config.prompt_tuning_init == PromptTuningInit.SAMPLE_VOCAB:
        size = next(site.vocabulary.parameters()).shape[0]
        return nn.Parameter(site.rows(torch.randint(size, (site.tokens,))).clone())
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer_name_or_path, **(config.tokenizer_kwargs or {}))
    ids = tokenizer(config.prompt_tuning_init_text)["input_ids"]
    # A text shorter than the prompt is repeated, a longer one is cut.
    repeated = (ids * (site.tokens // max(len(ids), 1) + 1))[: site.tokens]
    return nn.Parameter(site.rows(torch.tensor(repeated)).clone())


@register("PROMPT_TUNING", PromptTuningConfig)
class PromptEmbedding(TablePromptEncoder):
    """`embedding`: (virtual tokens, dim)."""

    def __init__(self, site: PromptSite, config: PromptTuningConfig) -> None:
        super().__init__(site, config)
        self.embedding = embedding_of(starting_table(site, config))
