"""LLaMA-Adapter: in the last layers, attention over a learned prompt, added through a gate that starts at zero.

    out = Attn(x) + g · W_o softmax(q K_pᵀ / √d) V_p,   K_p = W_k P,  V_p = W_v P,  q the layer's own rotated query

Zhang et al. 2023, arXiv 2303.16199. Trainable: len · dim + 1 a layer. Not mergeable. Layers: attention modules with
q_proj, k_proj, v_proj, o_proj and rotary positions (Llama, Mistral, Qwen2, Gemma, ...); GPT-2's, whose mixture is added
without W_o, as in the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.config import LayerConfig, bounded, extension, register
from ...core.hosts.adapter import Activation, Site
from ...core.hosts.view import View
from ...core.layers.cut import cut_of_keys
from ...errors import ConfigError, TargetError
from ..selective.last_layers import block_stack


@dataclass(kw_only=True)
class AdaptionPromptConfig(LayerConfig):
    """Configuration of LLaMA-Adapter; fields as in the reference.

    Attributes:
        adapter_len: tokens of a layer's prompt; must be given.
        adapter_layers: how many of the last layers to adapt; must be given.
        target_modules: the name of the attention inside a block; "self_attn", or "attn" as in GPT-2, if None.
    """

    adapter_len: int | None = bounded(None, ge=1)
    adapter_layers: int | None = bounded(None, ge=1)
    modules_to_save: list[str] | None = extension()

    default_learning_rate: ClassVar[float] = 9e-3

    def __post_init__(self) -> None:
        self.leaf = self.target_modules if isinstance(self.target_modules, str) else None
        if isinstance(self.target_modules, str):
            self.target_modules = None
        super().__post_init__()

    def own_targets(self, model: Any) -> list[str]:
        for key in ("adapter_len", "adapter_layers"):
            if getattr(self, key) is None:
                raise ConfigError("must be given", where=key, expected="a number, e.g. 10")
        name, size = block_stack(model)
        assert self.adapter_layers is not None
        if self.adapter_layers > size:
            raise TargetError("the model has fewer layers", where="adapter_layers", got=self.adapter_layers,
                              expected=f"<= {size}")  # fmt: skip
        if self.leaf is None:
            self.leaf = "attn" if hasattr(model.get_submodule(f"{name}.0"), "attn") else "self_attn"
        return [f"{name}.{i}.{self.leaf}" for i in range(size - self.adapter_layers, size)]

    def to_dict(self) -> dict[str, Any]:
        """As the file has it: the attention's name, not the list of layers."""
        return {**super().to_dict(), "target_modules": self.leaf}


_SEPARATE = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim")
_FUSED = ("c_attn", "embed_dim", "head_dim")
"""What attentions have that this method knows."""


@register("ADAPTION_PROMPT", AdaptionPromptConfig)
class AdaptionPrompt(Activation):
    """`adaption_prompt`: (1, len, dim); `adaption_gate`: (1,)."""

    steady: ClassVar[bool] = True
    prefix = "adaption_"
    kinds = frozenset({"module"})
    shares_batch = False  # it calls other layers, with rows of its own

    def __init__(self, site: Site, config: AdaptionPromptConfig) -> None:
        super().__init__(site, config)
        attention: Any = site.base.module
        if not any(all(hasattr(attention, n) for n in known) for known in (_SEPARATE, _FUSED)):
            raise TargetError("not an attention that is known to this method", where=site.name,
                              got=type(attention).__name__, expected=", ".join(_SEPARATE))  # fmt: skip
        assert config.adapter_len is not None
        width = attention.embed_dim if hasattr(attention, "c_attn") else attention.q_proj.in_features
        self.adaption_prompt = site.normal(1.0, 1, config.adapter_len, width)
        self.adaption_gate = site.zeros(1)

    def forward(self, inner: View, x: Any) -> Any:
        out = inner(x)
        first: Tensor = out[0] if isinstance(out, tuple) else out
        changed = first + self._attend(inner.base.module, x, inner.kwargs).to(first.dtype)
        return (changed, *out[1:]) if isinstance(out, tuple) else changed

    def _attend(self, attention: Any, x: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        query, _, _ = _projected(attention, x)
        _, keys, values = _projected(attention, self.adaption_prompt.to(x.dtype))
        if "position_embeddings" in kwargs:
            cos, sin = (part.unsqueeze(1) for part in kwargs["position_embeddings"])
            half = query.shape[-1] // 2
            turned = torch.cat([-query[..., half:], query[..., :half]], dim=-1)
            query = query * cos + turned * sin
        repeat = query.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(repeat, 1), values.repeat_interleave(repeat, 1)
        scores = query @ keys.mT / attention.head_dim**0.5
        weights = torch.softmax(scores.float(), dim=-1).to(query.dtype)
        cut, gate = cut_of_keys(attention), self.adaption_gate.to(x.dtype)
        if cut is not None:  # each process has some of the heads, and a part of the gate's gradient
            gate = cut.fanned_out(gate)
        mixed = (gate * (weights @ values)).transpose(1, 2).flatten(2)
        if hasattr(attention, "c_attn"):
            return mixed
        added: Tensor = attention.o_proj(mixed)
        return added


def _projected(attention: Any, x: Tensor) -> list[Tensor]:
    """Queries, keys and values: (batch, heads, tokens, width of a head)."""
    if hasattr(attention, "c_attn"):
        parts = attention.c_attn(x).split(attention.embed_dim, dim=2)
    else:
        parts = [getattr(attention, name)(x) for name in _SEPARATE[:3]]
    return [y.view(y.shape[0], y.shape[1], -1, attention.head_dim).transpose(1, 2) for y in parts]
