"""Where virtual tokens go: inputs, masks, positions, labels, caches, generation. Once, for all methods."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ..caches import cache_name, given_cache
from ..config import TaskType
from ..layers.cut import cut_of_keys
from ..layers.sharded import ready
from .encoder import PromptEncoder, PromptLearningConfig
from .key_shapes import layer_keys


class Placement:
    """One adapter's virtual tokens in one model's calls.

    Virtual tokens stand first in every row, whichever side is padded; positions are counted over real tokens where the
    model takes `position_ids`.
    """

    def __init__(self, model: nn.Module, encoder: PromptEncoder, config: PromptLearningConfig) -> None:
        self.model, self.encoder, self.config = model, encoder, config
        self.count = config.num_virtual_tokens
        self.is_encoder_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        self.parameters = inspect.signature(model.forward).parameters
        # The heads of decoders are called so; their rows may be padded on either side.
        decodes = isinstance(getattr(model, "score", None), nn.Module)
        self.pools_last = config.task_type == TaskType.SEQ_CLS and decodes
        self.counts_positions = config.task_type == TaskType.CAUSAL_LM or decodes

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's forward with the virtual tokens in place."""
        call = arguments(self.model, args, kwargs)
        if self.encoder.goes_into == "cache":
            self._into_cache(call)
        else:
            self._into_embeddings(call)
        out = self.model(**call)
        weights = self.encoder.label_weights()
        if weights is not None and call.get("labels") is not None:
            out.loss = weighted_loss(out.logits, call["labels"], weights, call.get("num_items_in_batch"))
        return out

    # -- placing ----------------------------------------------------------------------------------------------------

    def encode(self, batch: int, call: dict[str, Any], like: Tensor) -> Tensor:
        """The virtual tokens of a batch (batch, tokens, width); takes what the encoder consumes out of `call`."""
        inputs = {k: call.pop(k, None) for k in self.encoder.inputs}
        out: Tensor = self.encoder(batch, **inputs)
        return out.to(like.dtype)

    def _into_embeddings(self, call: dict[str, Any]) -> None:
        words = word_embeddings(self.model, call)
        batch, length = words.shape[:2]
        prompts = self.encode(batch, call, words)[:, : self.count]
        mask = call.get("attention_mask")
        if self.pools_last and mask is not None:
            # The head reads the last position, so padding must not stand there.
            order = mask.argsort(dim=1, stable=True)
            words = words.gather(1, order.unsqueeze(-1).expand_as(words))
            mask = mask.gather(1, order)
        call["inputs_embeds"] = torch.cat([prompts, words], dim=1)
        full = _lengthen(mask, batch, length, self.count, words.device)
        if mask is not None or not self.is_encoder_decoder:
            call["attention_mask"] = full
        self._positions(call, mask, full, 0)
        if call.get("token_type_ids") is not None:
            call["token_type_ids"] = _lengthen(call["token_type_ids"], batch, length, self.count, words.device, 0)
        labels = call.get("labels")
        if labels is not None and self.config.task_type in (TaskType.CAUSAL_LM, TaskType.TOKEN_CLS):
            call["labels"] = _lengthen(labels, batch, length, self.count, words.device, -100)
            own = self.encoder.labels()
            if own is not None:
                call["labels"] = torch.cat([own.to(labels).expand(batch, -1), labels], dim=1)

    def _into_cache(self, call: dict[str, Any]) -> None:
        self.refuse_checkpointing()
        ids = call.get("input_ids") if call.get("input_ids") is not None else call.get("inputs_embeds")
        if ids is None:
            raise ConfigError("neither input_ids nor inputs_embeds was given", where="forward")
        if given_cache(call) is not None:
            return
        batch, length = ids.shape[:2]
        call[cache_name(self.model.forward)] = self.cache(batch, call)
        if self.is_encoder_decoder:
            mask = call.get("decoder_attention_mask")
            if mask is not None:
                call["decoder_attention_mask"] = _lengthen(mask, batch, mask.shape[1], self.count, ids.device)
            return
        mask = call.get("attention_mask")
        call["attention_mask"] = full = _lengthen(mask, batch, length, self.count, ids.device)
        self._positions(call, mask, full, self.count)

    def refuse_checkpointing(self) -> None:
        """Refuse gradient checkpointing for virtual tokens in the cache."""
        if self.model.training and getattr(self.model, "is_gradient_checkpointing", False):
            raise ConfigError(
                "gradient checkpointing drops the cache that this method prefixes", where=str(self.config.peft_type),
                fix="switch it off (gradient_checkpointing_disable), or use a method that prefixes embeddings",
            )  # fmt: skip

    def _positions(self, call: dict[str, Any], mask: Tensor | None, full: Tensor, skip: int) -> None:
        counted = self.counts_positions and mask is not None and "position_ids" in self.parameters
        if counted and call.get("position_ids") is None:
            call["position_ids"] = (full.long().cumsum(1) - 1).clamp_min(0)[:, skip:]
        elif call.get("position_ids") is not None:
            # They count the caller's own tokens.
            call["position_ids"] = shifted = call["position_ids"] + self.count
            if skip == 0:
                first = torch.arange(self.count, device=shifted.device).expand(shifted.shape[0], -1)
                call["position_ids"] = torch.cat([first, shifted], dim=1)

    def cache(self, batch: int, call: dict[str, Any]) -> Any:
        """The keys and values of the virtual tokens as a transformers Cache."""
        from transformers import DynamicCache, EncoderDecoderCache

        cache = DynamicCache()
        for layer, (keys, values) in self.keys_and_values(batch, call).items():
            cache.update(keys, values, layer)
        return EncoderDecoderCache(cache, DynamicCache()) if self.is_encoder_decoder else cache

    def keys_and_values(self, batch: int, call: dict[str, Any]) -> dict[int, tuple[Tensor, Tensor]]:
        """Of every layer that takes a prefix: (batch, heads, tokens, width of a head) each."""
        first = next(p for p in self.model.parameters() if p.is_floating_point())
        flat = self.encode(batch, call, first)
        layers, heads = self.config.num_layers, self.config.num_attention_heads
        assert layers is not None
        assert heads is not None
        split = flat.view(batch, self.count, layers * 2, heads, -1).permute(2, 0, 3, 1, 4)
        # With two submodules the files' order is: the list gone through twice, every second pair belonging to a layer.
        step = 4 if self.config.num_transformer_submodules == 2 else 2
        out, cut = {}, cut_of_keys(self.model)
        for layer, (own_heads, width) in self.layer_keys.items():
            place = (step * layer) % (2 * layers)
            keys, values = (split[i][:, :own_heads, :, :width] for i in (place, place + 1))
            if cut is not None:  # each process has some of the heads
                keys, values = cut.part(keys, 1), cut.part(values, 1)
            out[layer] = keys, values
        return out

    @functools.cached_property
    def layer_keys(self) -> dict[int, tuple[int, int]]:
        """Layer -> heads and width of its keys, of those that take a prefix."""
        config = self.config
        assert config.num_layers is not None
        assert config.token_dim is not None
        assert config.num_attention_heads is not None
        return layer_keys(self.model, config.num_layers, config.token_dim, config.num_attention_heads)

    # -- generating -------------------------------------------------------------------------------------------------

    def generate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's `generate` with the virtual tokens in place; they are not part of what it returns."""
        call = generating(args, kwargs)
        ids = call["input_ids"]
        run: Any = self.model.generate
        if self.encoder.goes_into == "cache":
            return self._generate_from_cache(run, call, ids)
        words = word_embeddings(self.model, call)
        prompts = self.encode(len(ids), call, words)[:, : self.count]
        call["attention_mask"] = _lengthen(call["attention_mask"], len(ids), ids.shape[1], self.count, ids.device)
        if not self.is_encoder_decoder:
            count_in(self.model, call, self.count)
        out = run(inputs_embeds=torch.cat([prompts, words], dim=1), **call)
        return out if self.is_encoder_decoder else after_prompt(out, ids)

    def _generate_from_cache(self, run: Any, call: dict[str, Any], ids: Tensor) -> Any:
        settings: Any = call.get("generation_config") or self.model.generation_config
        kind = call.get("cache_implementation", getattr(settings, "cache_implementation", None))
        if kind not in (None, "hybrid"):  # a word of former releases, which transformers takes for no choice
            raise ConfigError("a prefix stands in a cache of its own", where="cache_implementation", got=kind,
                              fix="leave it out (in generation_config: None)")  # fmt: skip
        copies = max(call.get("num_beams", settings.num_beams) or 1,
                     call.get("num_return_sequences", settings.num_return_sequences) or 1)  # fmt: skip
        # generate() takes the cache's tokens for the first ones of the input, so as many stand-ins go before it.
        call[cache_name(self.model.forward)] = self.cache(len(ids) * copies, call)
        if self.is_encoder_decoder:
            return run(**call)
        call["input_ids"] = _lengthen(ids, len(ids), ids.shape[1], self.count, ids.device, 0)
        call["attention_mask"] = _lengthen(call["attention_mask"], len(ids), ids.shape[1], self.count, ids.device)
        count_in(self.model, call, self.count)
        return _edit(run(**call), lambda all_ids: all_ids[:, self.count :])


def _lengthen(
    values: Tensor | None, batch: int, length: int, count: int, device: torch.device, fill: int = 1
) -> Tensor:
    """`values` (ones if None) with `count` columns of `fill` before them."""
    if values is None:
        return torch.ones(batch, count + length, dtype=torch.long, device=device)
    return torch.cat([values.new_full((batch, count), fill), values], dim=1)


def generating(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `generate` by name, with a mask."""
    call = dict(kwargs)
    if args:
        call["input_ids"] = args[0]
    if "inputs" in call:
        call["input_ids"] = call.pop("inputs")
    if call.get("input_ids") is None:
        raise ConfigError(
            "no input_ids were given", where="generate", fix="virtual tokens stand before tokens: give them"
        )
    if call.get("attention_mask") is None:
        call["attention_mask"] = torch.ones_like(call["input_ids"])
    return call


def count_in(model: nn.Module, call: dict[str, Any], more: int) -> None:
    """Let the lengths that a call of `generate` names, or the settings for it, hold for words and `more` tokens before
    them."""
    settings, own = call.get("generation_config"), getattr(model, "generation_config", None)
    for key in ("max_length", "min_length"):
        if call.get(key):
            call[key] += more
        elif getattr(settings, key, None):
            # Not as an argument, which transformers does not want beside settings.
            settings = call["generation_config"] = copy.deepcopy(settings)
            setattr(settings, key, getattr(settings, key) + more)
        elif getattr(own, key, None):
            call[key] = getattr(own, key) + more


def after_prompt(out: Any, ids: Tensor) -> Any:
    """What `generate` returned for embeddings (new tokens alone), behind the tokens `ids`."""
    return _edit(out, lambda new: torch.cat([_repeat(ids, new), new], dim=1))


def arguments(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call of the model by name."""
    names = [n for n in inspect.signature(model.forward).parameters if n not in ("args", "kwargs")]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def word_embeddings(model: nn.Module, call: dict[str, Any]) -> Tensor:
    """The embeddings of the call's tokens, which it takes out of the call: (batch, tokens, dim)."""
    given = call.pop("inputs_embeds", None)
    ids = call.pop("input_ids", None)
    if given is not None:
        out: Tensor = given
        return out
    if ids is None:
        raise ConfigError("neither input_ids nor inputs_embeds was given", where="forward")
    ready(model)
    embed: Any = model.get_input_embeddings()  # type: ignore[operator]
    out = embed(ids)
    return out


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor, count: Any = None) -> Tensor:
    """The next token's cross-entropy, (batch, tokens, vocabulary) against (batch, tokens); the first tokens' terms are
    multiplied with `weights` (tokens,) or (batch, tokens); divided by the number of labels, or by `count`."""
    labels = labels[:, 1:].to(logits.device)
    terms = F.cross_entropy(logits[:, :-1].float().mT, labels, ignore_index=-100, reduction="none")
    first = weights[..., 1:].to(terms)
    size = first.shape[-1]
    return ((terms[:, :size] * first).sum() + terms[:, size:].sum()) / (
        (labels != -100).sum() if count is None else count
    )


def _repeat(ids: Tensor, new: Tensor) -> Tensor:
    return ids.repeat_interleave(new.shape[0] // ids.shape[0], dim=0)


def _edit(out: Any, change: Any) -> Any:
    """Change the token ids in what `generate` returned."""
    if isinstance(out, Tensor):
        return change(out)
    out.sequences = change(out.sequences)
    return out
