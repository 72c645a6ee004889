"""CPT: the embeddings of a context of examples, refined by trained, bounded differences.

    P = E(context ids) + δ,   ||δ_i|| <= √(dim / 2048) · ε (input tokens), ε_format (template tokens), 0 (answer tokens)

Blau et al. 2024, arXiv 2410.17222. Token types count in fours: 1 input template, 2 input, 3 answer template, 4 answer,
5 again input template, ...; 0 is padding. The context's answers take part in the loss; with "decay" the last of them
counts `opt_loss_decay_factor` times what a row's own answer does, the one before that factor squared, and so on. The
bound is part of the formula here, where the reference cuts the parameters.
Trainable: tokens · dim. Not mergeable. Models: causal language models.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...core.config import TaskType, bounded, register
from ...core.prompts.encoder import PromptEncoder, PromptLearningConfig, PromptSite
from ...errors import AfinaWarning, ConfigError

PUBLIC = ("CPTEmbedding",)


@dataclass(kw_only=True)
class CPTConfig(PromptLearningConfig):
    """Configuration of CPT; fields as in the reference.

    Attributes:
        cpt_token_ids: token ids of the context.
        cpt_mask: kept for the reference's files: all of the context is attended to, also where it has zeros.
        cpt_tokens_type_mask: type of each of these tokens, as this module counts them.
        opt_weighted_loss_type: "decay": earlier answers of the context count less in the loss.
        opt_loss_decay_factor: of that: how much less from one answer to the one before it.
        opt_projection_epsilon: ε, bound on the difference of an input token of 2048 numbers.
        opt_projection_format_epsilon: ε_format, the same for template tokens.
        tokenizer_name_or_path: kept for the reference's files, without effect.
    """

    cpt_token_ids: list[int] | None = None
    cpt_mask: list[int] | None = None
    cpt_tokens_type_mask: list[int] | None = None
    opt_weighted_loss_type: Literal["none", "decay"] | None = "none"
    opt_loss_decay_factor: float = bounded(1.0, gt=0, le=1)
    opt_projection_epsilon: float = bounded(0.1, ge=0, le=1e6)
    opt_projection_format_epsilon: float = bounded(0.1, ge=0, le=1e6)
    tokenizer_name_or_path: str | None = None

    needs: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "opt_loss_decay_factor": ("opt_weighted_loss_type", "decay"),
    }
    default_learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        ids = self.cpt_token_ids if self.cpt_token_ids is not None else [0]
        self.cpt_token_ids = ids
        # Types are checked below, so the length must not assume one.
        self.num_virtual_tokens = len(ids) if isinstance(ids, (list, tuple)) else 1
        self.cpt_mask = self.cpt_mask if self.cpt_mask is not None else [1] * self.num_virtual_tokens
        if self.cpt_tokens_type_mask is None:
            self.cpt_tokens_type_mask = [1] * self.num_virtual_tokens
        self.task_type = self.task_type or TaskType.CAUSAL_LM
        super().__post_init__()
        if self.num_transformer_submodules not in (None, 1):
            raise ConfigError("CPT is for causal language models", where="num_transformer_submodules",
                              got=self.num_transformer_submodules, expected=1)  # fmt: skip
        if self.task_type != TaskType.CAUSAL_LM:
            raise ConfigError("CPT is for causal language models", where="task_type", got=self.task_type)
        for key in ("cpt_mask", "cpt_tokens_type_mask"):
            if len(getattr(self, key)) != len(ids):
                raise ConfigError("needs as many numbers as cpt_token_ids", where=key, got=len(getattr(self, key)),
                                  expected=len(ids))  # fmt: skip
        if not all(self.cpt_mask):
            warnings.warn("cpt_mask: without effect: all of the context is attended to", AfinaWarning, stacklevel=4)


@register("CPT", CPTConfig)
class CPTEmbedding(PromptEncoder):
    """`delta`: (tokens, dim); the frozen context embeddings are the model's own."""

    disk_names: ClassVar[Mapping[str, str]] = {"delta": "prompt_encoder.delta"}

    def __init__(self, site: PromptSite, config: CPTConfig) -> None:
        super().__init__(site, config)
        ids, kinds = torch.tensor(config.cpt_token_ids), torch.tensor(config.cpt_tokens_type_mask)
        self.register_buffer("context", site.rows(ids), persistent=False)
        self.delta = site.zeros(site.tokens, site.dim)
        bound = torch.zeros(len(kinds))
        bound[(kinds > 0) & (kinds % 4 == 2)] = config.opt_projection_epsilon
        bound[(kinds > 0) & (kinds % 2 == 1)] = config.opt_projection_format_epsilon
        # Per token of 2048 numbers, the width that the paper's bounds are made for.
        bound *= (site.dim / 2048) ** 0.5
        answers = torch.where((kinds > 0) & (kinds % 4 == 0), ids, torch.full_like(ids, -100))
        self.weights: Tensor | None = None
        if config.opt_weighted_loss_type == "decay":
            context = torch.tensor(sorted({k for k in kinds.tolist() if k > 0 and k % 4 == 0}))
            age = (context >= kinds.unsqueeze(1)).sum(1).to(site.device)
            self.weights = config.opt_loss_decay_factor**age
        self.register_buffer("answers", answers.to(site.device), persistent=False)
        self.register_buffer("bound", bound.to(dtype=site.dtype, device=site.device), persistent=False)

    def encode(self) -> Tensor:
        norm = self.delta.norm(dim=1, keepdim=True)
        limit = self.get_buffer("bound").unsqueeze(1)
        change: Tensor = self.delta * (limit / norm.clamp_min(1e-12)).clamp_max(1.0)
        return self.get_buffer("context") + change

    def labels(self) -> Tensor:
        return self.get_buffer("answers")

    def label_weights(self) -> Tensor | None:
        return self.weights
