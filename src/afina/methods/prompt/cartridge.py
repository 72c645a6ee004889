"""Cartridges: a key-value cache that is computed from a text once and then trained like a prefix.

    [K_l; V_l] = cache of n tokens, the first `num_frozen_tokens` of which stay as they are (attention sinks)

Eyuboglu et al. 2025, arXiv 2506.06266. `initialize_kv_prefix_from_text` fills it from a text. Trainable: (tokens -
frozen) · 2 · layers · kv_dim. Not mergeable. Models: those whose attention takes a cache; no gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.caches import cache_of
from ...core.config import bounded, register
from ...core.layers.sharded import shared_like
from ...core.prompts.encoder import PromptEncoder, PromptLearningConfig, PromptSite
from ...errors import ConfigError

PUBLIC = ("CartridgeEncoder", "initialize_kv_prefix_from_text", "initialize_kv_prefix_from_past_key_values",
          "prompt_embeddings_from_past_key_values")  # fmt: skip


@dataclass(kw_only=True)
class CartridgeConfig(PromptLearningConfig):
    """Configuration of cartridges; fields as in the reference.

    Attributes:
        num_frozen_tokens: first tokens of the cache, which do not train.
    """

    num_frozen_tokens: int = bounded(1, ge=0)

    default_learning_rate: ClassVar[float] = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_frozen_tokens >= self.num_virtual_tokens:
            raise ConfigError("no token is left to train", where="num_frozen_tokens", got=self.num_frozen_tokens,
                              expected=f"< {self.num_virtual_tokens}")  # fmt: skip


@register("CARTRIDGE", CartridgeConfig)
class CartridgeEncoder(PromptEncoder):
    """`trainable_embedding`: (tokens - frozen, 2 · layers · kv_dim); `frozen_embedding`: the rows before it."""

    goes_into = "cache"

    def __init__(self, site: PromptSite, config: CartridgeConfig) -> None:
        super().__init__(site, config)
        width = 2 * site.layers * site.dim
        frozen = site.normal(config.num_frozen_tokens, width).detach()
        self.frozen_embedding = nn.Parameter(frozen, requires_grad=False)
        self.trainable_embedding = site.normal(site.tokens - config.num_frozen_tokens, width)

    def encode(self) -> Tensor:
        return torch.cat([self.frozen_embedding, self.trainable_embedding])

    def trainable(self) -> dict[str, nn.Parameter]:
        return {"trainable_embedding": self.trainable_embedding}

    def disk_state(self) -> dict[str, Tensor]:
        return {"prompt_embeddings": self.encode().detach()}

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.fill(tensors["prompt_embeddings"])

    def fill(self, table: Tensor) -> None:
        """Take over a whole `table` (tokens, 2 · layers · kv_dim)."""
        with torch.no_grad():
            begin = len(self.frozen_embedding)
            for own, rows in ((self.frozen_embedding, table[:begin]), (self.trainable_embedding, table[begin:])):
                own.copy_(shared_like(own, rows))


def prompt_embeddings_from_past_key_values(past_key_values: Any, *, num_virtual_tokens: int) -> Tensor:
    """The first tokens of a cache as a cartridge's table.

    Args:
        past_key_values: a cache of batch size 1: transformers' own, or a (keys, values) pair for each layer.
        num_virtual_tokens: how many tokens to take.

    Returns:
        (num_virtual_tokens, 2 · layers · kv_dim), as a file's `prompt_embeddings`.

    Raises:
        ConfigError: the cache is of several sequences, or holds fewer tokens.
    """
    layers = getattr(past_key_values, "layers", None)
    pairs = list(past_key_values) if layers is None else [(layer.keys, layer.values) for layer in layers]
    if not pairs or pairs[0][0].shape[0] != 1:
        raise ConfigError("a cache of one sequence is needed", where="past_key_values",
                          got=f"{len(pairs)} layers, {pairs[0][0].shape[0] if pairs else 0} sequences")  # fmt: skip
    # (1, heads, tokens, width) -> (tokens, heads · width)
    table = torch.cat([part[0].transpose(0, 1).flatten(1) for pair in pairs for part in pair[:2]], dim=1)
    if len(table) < num_virtual_tokens:
        raise ConfigError("the text is shorter than the cartridge", where="num_virtual_tokens", got=len(table),
                          expected=f">= {num_virtual_tokens} tokens")  # fmt: skip
    return table[:num_virtual_tokens]


def initialize_kv_prefix_from_past_key_values(
    model: Any, adapter_name: str | None = None, past_key_values: Any = None, num_virtual_tokens: int | None = None
) -> Tensor:
    """Fill a cartridge, or a prefix without projection, with the first tokens of a cache.

    Args:
        model: a `PeftModel` with such an adapter.
        adapter_name: the adapter's name; the active one's if None.
        past_key_values: a cache of batch size 1 with at least as many tokens as the adapter.
        num_virtual_tokens: how many tokens the adapter has, if it is to be said.

    Returns:
        The table that it holds now: (tokens, 2 · layers · kv_dim).

    Raises:
        ConfigError: the cache holds fewer tokens than the adapter, which has another number, or holds no cache.
    """
    name = model.active_adapter if adapter_name is None else adapter_name
    encoder: Any = dict(model.prompt_encoder.items()).get(name)
    if not hasattr(encoder, "fill"):
        raise ConfigError("only a cartridge, or a prefix, holds a cache", where=f"adapter_name: {name}",
                          got=type(encoder).__name__, expected="CartridgeConfig or PrefixTuningConfig")  # fmt: skip
    if num_virtual_tokens not in (None, encoder.tokens):
        raise ConfigError("the adapter has another number of tokens", where="num_virtual_tokens",
                          got=num_virtual_tokens, expected=encoder.tokens)  # fmt: skip
    table = prompt_embeddings_from_past_key_values(past_key_values, num_virtual_tokens=encoder.tokens)
    encoder.fill(table)
    return table


def initialize_kv_prefix_from_text(
    model: Any, tokenizer: Any, *, text: str, adapter_name: str | None = None, num_virtual_tokens: int | None = None,
    use_chat_template: bool = True, max_length: int | None = None,
) -> Tensor:  # fmt: skip
    """Run a text through the frozen base and fill a cartridge, or a prefix without projection, with its first keys and
    values.

    Args:
        model: a `PeftModel` with such an adapter.
        tokenizer: the base's.
        text: what the adapter is to stand for.
        adapter_name: the adapter's name; the active one's if None.
        num_virtual_tokens: how many tokens the adapter has, if it is to be said.
        use_chat_template: run it as a system message, where the tokenizer has a template.
        max_length: cut the text to so many tokens; None takes all.

    Returns:
        The table that it holds now: (tokens, 2 · layers · kv_dim).

    Raises:
        ConfigError: the text has fewer tokens than the adapter, which has another number, or holds no cache.
    """
    if use_chat_template and getattr(tokenizer, "chat_template", None):
        ids = tokenizer.apply_chat_template([{"role": "system", "content": text}], tokenize=True, return_dict=False,
                                            return_tensors="pt")[:, :max_length]  # fmt: skip
    else:
        cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
        ids = tokenizer(text, return_tensors="pt", **cut)["input_ids"]
    device = next(model.parameters()).device
    with torch.no_grad(), model.disable_adapter():
        out = model(input_ids=ids.to(device), use_cache=True)
    return initialize_kv_prefix_from_past_key_values(model, adapter_name, cache_of(out), num_virtual_tokens)
