"""The small decoder of ShadowPEFT: built like the model's own, run once per forward pass of the model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core.caches import cache_name
from ...core.config import TaskType
from ...core.hosts.routing import Router
from ...errors import ConfigError, TargetError

_WIDTH = ("hidden_size", "n_embd", "d_model")
_SIZES = {
    "shadow_num_hidden_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "shadow_hidden_size": _WIDTH,
    "shadow_intermediate_size": ("intermediate_size", "ffn_dim", "n_inner"),
    "shadow_num_attention_heads": ("num_attention_heads", "n_head", "num_heads"),
}
_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids", "labels")


class ShadowNetwork(Router):
    """Parameters: `shadow_backbone.default` (S), `shadow_projection.default` (P) if S is not as wide as the model, and
    `shadow_head.default` for classification.

    Attributes:
        width: of the model's hidden states.
        first: the first adapted block.

    Notes of a call: `model` and what it was `given`; `begun`, s_0; `state`, s as the last block that ran left it,
    (batch, tokens, width); `states`, s before each block, which checkpointing needs again.
    """

    def __init__(self, config: Any, blocks: Mapping[str, nn.Module], dtype: torch.dtype) -> None:
        super().__init__()
        self.first, block = next(iter(blocks.items()))
        own: Any = next((m.config for m in block.modules() if hasattr(getattr(m, "config", None), "model_type")), None)
        if own is None or getattr(own, "is_encoder_decoder", False):
            raise TargetError("not a block of an encoder or decoder of transformers", where=self.first,
                              got=type(block).__name__)  # fmt: skip
        small = _smaller(own, config)
        backbone = _built(small)
        if getattr(backbone, "main_input_name", "input_ids") != "input_ids":
            raise TargetError("the small network reads tokens, and this model takes none", where=self.first,
                              got=type(backbone).__name__)  # fmt: skip
        self.width, inner = _size(own), _size(small)
        self.shares = bool(config.share_embeddings) and inner == self.width
        if self.shares and hasattr(backbone, "embed_tokens"):
            del backbone.embed_tokens
        self.shadow_backbone = nn.ModuleDict({"default": backbone})
        self.shadow_projection, self.shadow_head = nn.ModuleDict(), nn.ModuleDict()
        if inner != self.width:
            self.shadow_projection["default"] = nn.Linear(inner, self.width, bias=False)
        self.is_lm = config.task_type == TaskType.CAUSAL_LM
        if config.task_type == TaskType.SEQ_CLS:
            self.shadow_head["default"] = nn.Linear(self.width, own.num_labels, bias=False)
        self.to(device=next(block.parameters()).device, dtype=dtype)
        self.weight: float = config.auxiliary_loss_weight

    def route(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note what the model is called with."""
        names = [n for n in inspect.signature(model.forward).parameters if n not in ("args", "kwargs")]
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        given = {name: call[name] for name in _INPUTS if call.get(name) is not None}
        self.notes.update(model=model, given=given, begun=None, state=None, states={})

    def before(self, block: str, given: Iterable[Any]) -> Tensor:
        """s before a block; `given` is what the block is called with.

        Raises:
            ConfigError: blocks run in another order.
        """
        if block == self.first:
            return self.start(given)
        states = self.notes["states"]
        state: Tensor | None = states.setdefault(block, self.notes["state"])
        if state is None:
            raise ConfigError("the first adapted block did not run before this one", where=block,
                              fix="adapt the blocks of one decoder, in the order in which they run")  # fmt: skip
        return state

    def start(self, given: Iterable[Any]) -> Tensor:
        """s_0; `given` is what the block is called with, from which the cache is taken."""
        backbone: Any = self.shadow_backbone["default"]
        dtype = next(backbone.parameters()).dtype
        notes, model = self.notes, self.notes["model"]
        inputs = {n: v for n, v in notes["given"].items() if n != "labels"}
        if self.shares and "input_ids" in inputs:
            inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
        if "inputs_embeds" in inputs:
            inputs["inputs_embeds"] = inputs["inputs_embeds"].to(dtype)
        cache = _cache(given, backbone.config.num_hidden_layers, model)
        inputs[cache_name(backbone.forward)] = cache
        hidden = backbone(**inputs, use_cache=cache is not None).last_hidden_state
        for projection in self.shadow_projection.values():
            hidden = projection(hidden)
        begun: Tensor = hidden.to(next(model.parameters()).dtype)
        notes["begun"] = begun
        return begun

    def own_loss(self) -> Tensor | None:
        """The weighted loss of a head on s_0; None without labels or without a head for the task."""
        notes = self.notes
        labels, state = notes["given"].get("labels"), notes["begun"]
        if labels is None or state is None or not self.weight:
            return None
        model: Any = notes["model"]
        if self.is_lm:
            logits = model.get_output_embeddings()(state)
            loss: Tensor = model.loss_function(logits, labels, vocab_size=logits.shape[-1])
            return self.weight * loss
        if not len(self.shadow_head):
            return None
        mask, head = notes["given"].get("attention_mask"), self.shadow_head["default"]
        mask = torch.ones_like(state[..., 0], dtype=torch.long) if mask is None else mask
        last = (torch.arange(state.shape[1], device=state.device) * mask).argmax(dim=1)
        pooled = state[torch.arange(len(state), device=state.device), last]
        logits = head(pooled.to(next(head.parameters()).dtype))
        loss = model.loss_function(labels=labels, pooled_logits=logits, config=model.config)
        return self.weight * loss


def _size(config: Any) -> int:
    return int(next(getattr(config, n) for n in _WIDTH if hasattr(config, n)))


def _smaller(own: Any, config: Any) -> Any:
    """The model's config with the sizes of the small decoder (one layer by default)."""
    out = copy.deepcopy(own)
    for key, names in _SIZES.items():
        value = getattr(config, key) or (1 if key == "shadow_num_hidden_layers" else None)
        own_name = next((n for n in names if hasattr(out, n)), None)
        if value is not None and own_name is None:
            raise TargetError("the model's config does not say its sizes as those of blocks do", where=key,
                              got=type(own).__name__, expected=", ".join(names))  # fmt: skip
        if value is not None:
            setattr(out, str(own_name), value)
    layers = out.num_hidden_layers
    if kinds := getattr(out, "layer_types", None):
        out.layer_types = [*kinds, *[kinds[-1]] * layers][:layers]
    if getattr(out, "max_window_layers", None) is not None:
        out.max_window_layers = min(out.max_window_layers, layers)
    heads, groups = getattr(out, "num_attention_heads", 1), getattr(out, "num_key_value_heads", None)
    if groups and heads % groups:
        out.num_key_value_heads = heads
    return out


def _built(small: Any) -> Any:
    from transformers import AutoModel

    try:
        return AutoModel.from_config(small)
    except ValueError as error:  # sizes that this architecture cannot have together
        raise ConfigError(f"the small network cannot have these sizes: {str(error).splitlines()[0]}",
                          where=", ".join(_SIZES)) from None  # fmt: skip


def _cache(given: Iterable[Any], layers: int, model: nn.Module) -> Any:
    """A cache of the small decoder whose layers live behind those of the model's own, so that they are reordered and
    cropped with them; None where the model runs without a cache."""
    from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

    found = next((v for v in given if isinstance(v, Cache)), None)
    if found is None:
        return None
    if not isinstance(found, DynamicCache):
        raise ConfigError("this method needs a cache that grows", where="past_key_values", got=type(found).__name__,
                          expected="DynamicCache")  # fmt: skip
    depth = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    while len(found.layers) < depth + layers:
        found.layers.append(DynamicLayer())
    own = DynamicCache()
    own.layers = found.layers[depth : depth + layers]
    return own
