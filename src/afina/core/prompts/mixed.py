"""Virtual tokens of several adapters in one pass: every row has its own, or none, before its own words.

keys and values: [padding; prefix], inputs: [padding; prompt; words], all padding masked, positions counted without it
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..caches import cache_name, given_cache
from ..config import TaskType
from .key_shapes import text_config
from .placement import Placement, after_prompt, arguments, generating, weighted_loss, word_embeddings

if TYPE_CHECKING:
    from ..hosts.batch_rows import Rows


class MixedPlacement:
    """The virtual tokens of every row in one call of a causal language model.

    Args:
        placements: the adapters of the batch that have virtual tokens.
    """

    def __init__(self, model: nn.Module, rows: Rows, placements: Mapping[str, Placement]) -> None:
        self.model, self.rows, self.placements = model, rows, placements
        self.order = torch.tensor([i for n in rows.groups.values() for i in n]).argsort()

    def _of_rows(self, part: Callable[[str, int], Tensor]) -> Tensor:
        """One tensor from those of the groups (name and number of rows -> tensor), rows in the batch's order."""
        found = torch.cat([part(name, len(index)) for name, index in self.rows.groups.items()])
        return found[self.order.to(found.device)]

    def _longest(self, goes_into: str) -> int:
        return max((p.count for p in self.placements.values() if p.encoder.goes_into == goes_into), default=0)

    def _tokens(self, name: str, goes_into: str) -> int:
        found = self.placements.get(name)
        return found.count if found is not None and found.encoder.goes_into == goes_into else 0

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's forward with the virtual tokens in place."""
        call = arguments(self.model, args, kwargs)
        words = word_embeddings(self.model, call)
        encoded = self._inputs(call)
        prompts, prefix = self._longest("embeddings"), self._longest("cache")
        call["inputs_embeds"] = torch.cat([self._prompts(prompts, words, encoded), words], dim=1)
        mask = call.get("attention_mask")
        mask = torch.ones(words.shape[:2], dtype=torch.long, device=words.device) if mask is None else mask
        full = torch.cat([self._mask("cache", prefix, mask), self._mask("embeddings", prompts, mask), mask], dim=1)
        call["attention_mask"] = full
        call["position_ids"] = (full.long().cumsum(1) - 1).clamp_min(0)[:, prefix:]
        if prefix:
            call[cache_name(self.model.forward)] = self._cache(prefix, encoded)
        labels = call.get("labels")
        if labels is not None:
            call["labels"] = self._labels(prompts, labels)
        out = self.model(**call)
        weights = self._weights(prompts, words)
        if weights is not None and labels is not None:
            out.loss = weighted_loss(out.logits, call["labels"], weights, call.get("num_items_in_batch"))
        return out

    def generate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's `generate` for rows that all have virtual tokens among the embeddings."""
        call = generating(args, kwargs)
        ids, mask = call["input_ids"], call["attention_mask"]
        words = word_embeddings(self.model, call)
        prompts = self._longest("embeddings")
        embeddings = torch.cat([self._prompts(prompts, words, self._inputs(call)), words], dim=1)
        call["attention_mask"] = torch.cat([self._mask("embeddings", prompts, mask), mask], dim=1)
        run: Any = self.model.generate
        return after_prompt(run(inputs_embeds=embeddings, **call), ids)

    def _inputs(self, call: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
        """Takes what encoders consume out of the call; gives what belongs to an adapter's rows."""
        given = {k: call.pop(k, None) for k in {k for p in self.placements.values() for k in p.encoder.inputs}}

        def of(name: str) -> dict[str, Any]:
            wanted = self.placements[name].encoder.inputs
            return {k: self.rows.pick(name, v) for k, v in given.items() if k in wanted}

        return of

    def _prompts(self, length: int, words: Tensor, encoded: Callable[[str], dict[str, Any]]) -> Tensor:
        """(rows, length, dim): virtual tokens among the embeddings, zeros before them."""

        def part(name: str, count: int) -> Tensor:
            own = self._tokens(name, "embeddings")
            if not own:
                return words.new_zeros(count, length, words.shape[2])
            made = self.placements[name].encode(count, encoded(name), words)[:, :own]
            return F.pad(made, (0, 0, length - own, 0))

        return self._of_rows(part)

    def _mask(self, goes_into: str, length: int, mask: Tensor) -> Tensor:
        """(rows, length): 1 for virtual tokens, 0 for the padding before them."""

        def part(name: str, count: int) -> Tensor:
            own = self._tokens(name, goes_into)
            return F.pad(mask.new_ones(count, own), (length - own, 0))

        return self._of_rows(part)

    def _labels(self, length: int, labels: Tensor) -> Tensor:
        """(rows, length + words); what comes after padding is no token's prediction, so it does not count."""

        def part(name: str, count: int) -> Tensor:
            own = self.placements[name].encoder.labels() if self._tokens(name, "embeddings") else None
            if own is None:
                return labels.new_full((count, length), -100)
            return F.pad(own.to(labels), (length - len(own), 0), value=-100).expand(count, -1)

        def first(name: str, count: int) -> Tensor:
            return labels.new_full((count,), not length or self._tokens(name, "embeddings") > 0, dtype=torch.bool)

        words = labels.clone()
        words[:, 0] = words[:, 0].where(self._of_rows(first), -100)
        return torch.cat([self._of_rows(part), words], dim=1)

    def _weights(self, length: int, like: Tensor) -> Tensor | None:
        """How much the losses at the virtual tokens count: (rows, length), or None where each counts 1."""
        own = {n: p.encoder.label_weights() for n, p in self.placements.items()}
        if all(w is None for w in own.values()):
            return None

        def part(name: str, count: int) -> Tensor:
            found = own.get(name)
            weights = like.new_ones(0) if found is None else found.to(like)
            return F.pad(weights, (length - len(weights), 0), value=1.0).expand(count, -1)

        return self._of_rows(part)

    def _cache(self, length: int, encoded: Callable[[str], dict[str, Any]]) -> Any:
        """Keys and values of all prefixes, zeros for rows and positions without."""
        from transformers import DynamicCache

        made = {
            n: p.keys_and_values(len(self.rows.groups[n]), encoded(n))
            for n, p in self.placements.items()
            if p.encoder.goes_into == "cache"
        }
        cache = DynamicCache()
        for layer, pair in next(iter(made.values())).items():
            of_layer = []
            for which, like in enumerate(pair):

                def part(name: str, count: int, which: int = which, like: Tensor = like, layer: int = layer) -> Tensor:
                    if name not in made:
                        return like.new_zeros(count, like.shape[1], length, like.shape[3])
                    own = made[name][layer][which]
                    return F.pad(own, (0, 0, length - own.shape[2], 0))

                of_layer.append(self._of_rows(part))
            cache.update(*of_layer, layer)
        return cache


def can_mix(model: nn.Module, placements: Mapping[str, Placement], kwargs: Mapping[str, Any]) -> bool:
    """Whether the virtual tokens of these adapters can share one pass of the model: a decoder whose attention sees
    masks and positions, and nothing in the call that would have to be rearranged."""
    config: Any = getattr(model, "config", None)
    text = text_config(model)
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    windows = getattr(text, "sliding_window", None) is not None and getattr(text, "use_sliding_window", True)
    mask = kwargs.get("attention_mask")
    return (
        all(p.config.task_type == TaskType.CAUSAL_LM for p in placements.values())
        and not getattr(config, "is_encoder_decoder", False)
        and "position_ids" in inspect.signature(model.forward).parameters
        # A gap between a prefix and the words would move the words out of a window.
        and kinds == {"full_attention"}
        and not windows
        and given_cache(kwargs) is None
        and all(kwargs.get(k) is None for k in ("position_ids", "token_type_ids", "cache_position"))
        and (mask is None or (isinstance(mask, Tensor) and mask.dim() == 2))
        and len({_layout(p) for p in placements.values() if p.encoder.goes_into == "cache"}) <= 1
    )


def _layout(placement: Placement) -> tuple[Any, ...]:
    config = placement.config
    return config.num_layers, config.num_attention_heads, config.token_dim
