"""What adapters do on a mixture of experts that two processes share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from afina.devices.ranks import meet, rank
from afina.errors import ConfigError

from . import spread, tensor_parallel
from .whole import WIDTH, WORDS, Case, Shape


def _qwen(seed: int, width: int) -> Any:
    import transformers

    torch.manual_seed(seed)
    sizes = {"intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2}  # fmt: skip
    config = transformers.Qwen3MoeConfig(vocab_size=WORDS, hidden_size=width, pad_token_id=0, **sizes)
    return transformers.Qwen3MoeForCausalLM(config).eval()


MIXTURE = Shape("mixture", _qwen, "CAUSAL_LM", "lm_head", "embed_tokens")


def spread_out(method: str, options: dict[str, Any], order: str, folder: str) -> list[str]:
    """What is otherwise than in one process where every process has a slice of each weight."""
    return spread.problems(Case(method, MIXTURE, order, options), order, Path(folder), Path(folder))


def cut(method: str, options: dict[str, Any], folder: str) -> list[str]:
    """The same where every process has a part of each layer; or what is said against it."""
    with spread.two():
        if rank() == 0:
            MIXTURE.build(0, WIDTH).save_pretrained(Path(folder) / "base")
        meet()
        try:
            return tensor_parallel.problems(Case(method, MIXTURE, "cut", options), Path(folder), Path(folder))
        except ConfigError as error:
            return [str(error).splitlines()[0]]
