"""Multitask prompt tuning: one shared prompt, and for each task a low-rank factor that it is multiplied with.

    P_t = P ∘ (cols_t rows_t),   cols_t of (tokens, ranks), rows_t of (ranks, dim)

Wang et al. 2023, arXiv 2303.02861. The model's forward takes `task_ids` (batch,). A start from another file's averaged
or single task takes that file's path from the caller, never from a config that was loaded.
Trainable: tokens · dim + tasks · ranks (tokens + dim). Not mergeable. Models: any that take `inputs_embeds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.config import bounded, register
from ...core.prompt import PromptSite, TablePromptEncoder
from ...core.tensorfile import read_header, read_tensors
from ...errors import ConfigError
from .prompt_tuning import PromptTuningConfig, PromptTuningInit, starting_table

PUBLIC = ("MultitaskPromptTuningInit",)


class MultitaskPromptTuningInit(str, Enum):
    """Where the shared prompt starts."""

    TEXT = "TEXT"
    RANDOM = "RANDOM"
    AVERAGE_SOURCE_TASKS = "AVERAGE_SOURCE_TASKS"
    EXACT_SOURCE_TASK = "EXACT_SOURCE_TASK"
    ONLY_SOURCE_SHARED = "ONLY_SOURCE_SHARED"


_FROM_FILE = ("AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED")


@dataclass(kw_only=True)
class MultitaskPromptTuningConfig(PromptTuningConfig):
    """Configuration of multitask prompt tuning; fields as in the reference."""

    prompt_tuning_init: Any = MultitaskPromptTuningInit.RANDOM
    prompt_tuning_init_state_dict_path: str | None = None
    prompt_tuning_init_task: int | None = bounded(0, ge=0)
    num_ranks: int = bounded(1, ge=1)
    num_tasks: int = bounded(1, ge=1)

    default_learning_rate: ClassVar[float] = 2e-2

    def __post_init__(self) -> None:
        start = str(getattr(self.prompt_tuning_init, "value", self.prompt_tuning_init))
        if start not in MultitaskPromptTuningInit.__members__:
            raise ConfigError("unknown start", where="prompt_tuning_init", got=start,
                              expected=", ".join(MultitaskPromptTuningInit.__members__))  # fmt: skip
        if start in _FROM_FILE:
            self.prompt_tuning_init = PromptTuningInit.RANDOM
            if not self.prompt_tuning_init_state_dict_path:
                raise ConfigError("needed for this start", where="prompt_tuning_init_state_dict_path")
        else:
            self.prompt_tuning_init = start
        super().__post_init__()
        self.prompt_tuning_init = MultitaskPromptTuningInit(start)


@register("MULTITASK_PROMPT_TUNING", MultitaskPromptTuningConfig)
class MultitaskPromptEmbedding(TablePromptEncoder):
    """`embedding`: (tokens, dim); task factors `cols`: (tasks, tokens, ranks), `rows`: (tasks, ranks, dim)."""

    inputs = frozenset({"task_ids"})
    disk_names: ClassVar[Mapping[str, str]] = {
        "embedding": "prompt_embeddings",
        "prefix_task_cols": "prefix_task_cols",
        "prefix_task_rows": "prefix_task_rows",
    }  # fmt: skip

    def __init__(self, site: PromptSite, config: MultitaskPromptTuningConfig) -> None:
        super().__init__(site, config)
        start = config.prompt_tuning_init.value
        if start in _FROM_FILE and not config.inference_mode:
            self.embedding = nn.Parameter(self._from_file(config, start).to(dtype=site.dtype, device=site.device))
        elif start == "TEXT":
            self.embedding = starting_table(site, config)
        else:
            self.embedding = site.normal(site.tokens, site.dim)
        self.prefix_task_cols = site.normal(config.num_tasks, site.tokens, config.num_ranks, std=0.02)
        self.prefix_task_rows = site.normal(config.num_tasks, config.num_ranks, site.dim, std=0.02)

    @staticmethod
    def _from_file(config: MultitaskPromptTuningConfig, start: str) -> Tensor:
        """The prompt of a trained source: its tasks' mean, one task's, or the shared part."""
        path = Path(str(config.prompt_tuning_init_state_dict_path))
        read_header(path)
        source = read_tensors(path)
        shared = source["prompt_embeddings"]
        if start == "ONLY_SOURCE_SHARED":
            return shared
        per_task = shared * (source["prefix_task_cols"] @ source["prefix_task_rows"])
        return per_task.mean(0) if start == "AVERAGE_SOURCE_TASKS" else per_task[config.prompt_tuning_init_task or 0]

    def forward(self, batch: int, **inputs: Any) -> Tensor:
        ids = inputs.get("task_ids")
        if ids is None:
            raise ConfigError("this method needs to know each row's task", where="forward", got="no task_ids",
                              expected="task_ids=tensor of (batch,)")  # fmt: skip
        factors = torch.matmul(self.prefix_task_cols[ids], self.prefix_task_rows[ids])
        return self.embedding.unsqueeze(0) * factors
