"""Multitask prompt tuning: one shared prompt, and for each task a low-rank factor that it is multiplied with.

    P_t = P ∘ (cols_t rows_t),   cols_t of (tokens, ranks), rows_t of (ranks, dim)

Wang et al. 2023, arXiv 2303.02861. The model's forward takes `task_ids`: (batch,), or (1,) for all rows. A start from
another file's averaged or single task gives every task that file's shared prompt and that factor (of averaged cols and
rows, as in the reference); the file's path is the caller's, never from a config that was loaded.
Trainable: tokens · dim + tasks · ranks (tokens + dim). Not mergeable. Models: any that take `inputs_embeds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.config import bounded, register
from ...core.files.tensorfile import read_header, read_tensors
from ...core.prompts.encoder import PromptSite, TablePromptEncoder, embedding_of
from ...errors import ConfigError
from .prompt_tuning import PromptTuningConfig, PromptTuningInit, starting_table

PUBLIC = ("MultitaskPromptTuningInit",)


class MultitaskPromptTuningInit(str, Enum):
    """Where the shared prompt starts.

    Attributes:
        TEXT: at the embeddings of a text.
        RANDOM: at random.
        AVERAGE_SOURCE_TASKS: at a file's prompt, every task at the mean of the file's.
        EXACT_SOURCE_TASK: at a file's prompt, every task at one of the file's.
        ONLY_SOURCE_SHARED: at a file's prompt, tasks at random.
    """

    TEXT = "TEXT"
    RANDOM = "RANDOM"
    AVERAGE_SOURCE_TASKS = "AVERAGE_SOURCE_TASKS"
    EXACT_SOURCE_TASK = "EXACT_SOURCE_TASK"
    ONLY_SOURCE_SHARED = "ONLY_SOURCE_SHARED"


_FROM_FILE = ("AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED")


@dataclass(kw_only=True)
class MultitaskPromptTuningConfig(PromptTuningConfig):
    """Configuration of multitask prompt tuning; fields as in the reference.

    Attributes:
        prompt_tuning_init: where the shared prompt starts: a `MultitaskPromptTuningInit` or its name.
        prompt_tuning_init_state_dict_path: the weights' file of the starts that need one.
        prompt_tuning_init_task: of EXACT_SOURCE_TASK: which task of the file.
        num_ranks: rank of a task's factor.
        num_tasks: how many there are.
    """

    prompt_tuning_init: Any = MultitaskPromptTuningInit.RANDOM
    prompt_tuning_init_state_dict_path: str | None = None
    prompt_tuning_init_task: int | None = bounded(0, ge=0)
    num_ranks: int = bounded(1, ge=1)
    num_tasks: int = bounded(1, ge=1)

    needs: ClassVar[Mapping[str, tuple[str, Any]]] = {
        **PromptTuningConfig.needs,
        "prompt_tuning_init_task": ("prompt_tuning_init_state_dict_path", ...),
    }
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
        "embedding.weight": "prompt_embeddings",
        "prefix_task_cols": "prefix_task_cols",
        "prefix_task_rows": "prefix_task_rows",
    }  # fmt: skip

    def __init__(self, site: PromptSite, config: MultitaskPromptTuningConfig) -> None:
        super().__init__(site, config)
        start = config.prompt_tuning_init.value
        rows = starting_table(site, config) if start == "TEXT" else site.normal(site.tokens, site.dim)
        self.embedding = embedding_of(rows)
        self.prefix_task_cols = site.normal(config.num_tasks, site.tokens, config.num_ranks, std=0.02)
        self.prefix_task_rows = site.normal(config.num_tasks, config.num_ranks, site.dim, std=0.02)
        if start in _FROM_FILE and not config.inference_mode:
            self._start_from_file(config, start)

    def _start_from_file(self, config: MultitaskPromptTuningConfig, start: str) -> None:
        """Take over a trained source: its shared prompt and, for every task, its tasks' mean factors or one task's."""
        path = Path(str(config.prompt_tuning_init_state_dict_path))
        read_header(path)
        source, task = read_tensors(path), config.prompt_tuning_init_task or 0
        found = {"embedding.weight": source["prompt_embeddings"]}
        for name in () if start == "ONLY_SOURCE_SHARED" else ("prefix_task_cols", "prefix_task_rows"):
            factors = source[name]
            if task >= len(factors):
                raise ConfigError("the source has fewer tasks", where="prompt_tuning_init_task", got=task,
                                  expected=f"< {len(factors)}")  # fmt: skip
            one = factors.mean(0) if start == "AVERAGE_SOURCE_TASKS" else factors[task]
            found[name] = one.expand(config.num_tasks, -1, -1)
        for name, tensor in found.items():
            target = self.get_parameter(name)
            if tensor.shape != target.shape:
                raise ConfigError("the source has another shape", where=f"{path}: {name}", got=tuple(tensor.shape),
                                  expected=tuple(target.shape))  # fmt: skip
            with torch.no_grad():
                target.copy_(tensor)

    def forward(self, batch: int, **inputs: Any) -> Tensor:
        ids = inputs.get("task_ids")
        if ids is None:
            raise ConfigError("this method needs to know each row's task", where="forward", got="no task_ids",
                              expected="task_ids=tensor of (batch,)")  # fmt: skip
        ids = torch.as_tensor(ids, device=self.prefix_task_cols.device)
        if ids.shape not in ((1,), (batch,)):
            raise ConfigError("every row has one task", where="task_ids", got=tuple(ids.shape), expected=f"({batch},)")
        factors = torch.matmul(self.prefix_task_cols[ids], self.prefix_task_rows[ids])
        return (self.embedding.weight.unsqueeze(0) * factors).expand(batch, -1, -1)
