"""X-LoRA: a classifier mixes several trained LoRAs anew for every token (and layer).

    y_t = W x_t + g · Σ_e a_te · s_e B_e A_e x_t,   a_t = softmax(classifier(h_t) / temperature)

Buehler and Buehler 2024, arXiv 2402.07148. h_t is the last hidden state of a first pass over the model, in which every
LoRA counts `scaling_pass_value`; the second pass is mixed. The experts are adapters of their own on the same model,
under the names in `adapters`, and stay frozen unless `use_trainable_adapters`. Each step of generation is two whole
passes without a cache. Experts may sit on different layers; DoRA and other forms that are no plain sum are refused.
The reference (0.21.2) takes no expert names but "0", "1", ..., writes the file without the classifier's layers of
those numbers, and the whole model into the experts' folders: name the experts' own folders to read what it wrote.
Trainable: the classifier, by default (hidden + 1) · experts. Not mergeable. Layers: Linear, Conv1D, Embedding, whose
inputs are (batch, tokens, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from ...core.config import LayerConfig, bounded, extension, register
from ...core.hosts.adapter import Activation, Site
from ...core.hosts.host import Host
from ...core.hosts.routing import Place
from ...core.hosts.view import View
from ...core.inject.slots import slots
from ...core.layers.weights import BaseWeight
from ...errors import ConfigError, TargetError
from .lora import Lora
from .xlora_router import XLoraRouter


@dataclass(kw_only=True)
class XLoraConfig(LayerConfig):
    """Configuration of X-LoRA; fields as in the reference.

    Attributes:
        hidden_size: of the model's last hidden state; taken from the model's config if None.
        adapters: name -> folder or hub id of every expert; an empty string for one that is on the model already. When
            the config is read from a file, only the names count: the experts lie in subfolders of these names, or where
            `from_pretrained(..., adapters={name: folder})` says.
        enable_softmax: let the weights of a token sum to 1.
        enable_softmax_topk: the same after `top_k_lora`.
        layerwise_scalings: weights for each layer; False has the same for all.
        xlora_depth: linear layers of the classifier.
        xlora_size: its hidden width, where there are more than one.
        xlora_dropout_p: dropout between them.
        use_trainable_adapters: let the experts train too.
        softmax_temperature: divides the logits.
        top_k_lora: experts that count at a token; None for all.
        scaling_pass_value: weight of every expert in the first pass.
        global_scaling_weight: g.
        modules_to_save: as in every method; written to the file only if it is set.
    """

    hidden_size: int | None = bounded(None, ge=1)
    adapters: dict[str, str] | None = None
    enable_softmax: bool = True
    enable_softmax_topk: bool = False
    layerwise_scalings: bool = False
    xlora_depth: int = bounded(1, ge=1, le=100)
    xlora_size: int = bounded(2048, ge=1)
    xlora_dropout_p: float = bounded(0.2, ge=0, lt=1)
    use_trainable_adapters: bool = False
    softmax_temperature: float = bounded(1.0, gt=0)
    top_k_lora: int | None = bounded(None, ge=1)
    scaling_pass_value: float = 0.0
    global_scaling_weight: float = 1.0
    # The experts decide which layers are adapted.
    target_modules: list[str] | str | None = field(default=None, metadata={"runtime": True})
    modules_to_save: list[str] | None = extension()
    places: dict[str, Any] = field(default_factory=dict, init=False, metadata={"runtime": True})

    default_learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        # Their order is that of the classifier's outputs, and a file need not keep that of a mapping.
        order = sorted(self.adapters or {}, key=lambda n: (not n.isdecimal(), int(n) if n.isdecimal() else 0, n))
        self.adapters = {name: (self.adapters or {})[name] for name in order}
        if self.enable_softmax_topk and self.top_k_lora is None:
            raise ConfigError("it needs top_k_lora", where="enable_softmax_topk", got=True)
        if self.top_k_lora is not None and self.adapters and self.top_k_lora > len(self.adapters):
            raise ConfigError("more than there are experts", where="top_k_lora", got=self.top_k_lora,
                              expected=f"at most {len(self.adapters)}")  # fmt: skip

    def experts(self) -> Mapping[str, Place]:
        return self.places or {name: Place(source) for name, source in (self.adapters or {}).items()}

    def find_experts(self, places: Callable[[str], Place]) -> None:
        self.places = {name: places(name) for name in self.adapters or {}}

    # Every layer that has one of the experts; also settles `hidden_size`.
    def own_targets(self, model: Any) -> list[str]:
        if not self.adapters:
            raise ConfigError("X-LoRA needs experts", where="adapters", got="none",
                              expected="name -> folder or hub id of trained LoRAs")  # fmt: skip
        known = getattr(getattr(model, "config", None), "hidden_size", None)
        self.hidden_size = self.hidden_size or known
        if self.hidden_size is None or known not in (None, self.hidden_size):
            raise ConfigError("not the size of the model's hidden states", where="hidden_size", got=self.hidden_size,
                              expected=known or "a number")  # fmt: skip
        return [slot.name for slot in slots(model) if self._has_expert(slot.name, slot.module)]

    def _has_expert(self, name: str, module: nn.Module) -> bool:
        found = False
        while isinstance(module, Host):
            for expert in filter(None, map(module.adapter, self.adapters or {})):
                # Its own forward: another form than y = W x + update(x) cannot be weighed token by token.
                if not isinstance(expert, Lora) or type(expert).forward is not Lora.forward or module.parameter:
                    raise TargetError("only plain LoRA on whole layers can be an expert of X-LoRA", where=name,
                                      got=type(expert).__name__)  # fmt: skip
                found = True
            module = module.base_layer
        return found


@register("XLORA", XLoraConfig)
class XLora(Activation):
    """The experts of one layer, weighed by what the router decided; has no parameters of its own."""

    prefix = "xlora_"
    kinds = frozenset({"linear", "embedding"})

    def __init__(self, site: Site, config: XLoraConfig) -> None:
        super().__init__(site, config)
        assert isinstance(site.shared, XLoraRouter)
        self.share(site.shared)
        self.number = site.shared.layers[site.name]
        self.computed_in = site.dtype

    @property
    def dtype(self) -> torch.dtype:
        return self.computed_in

    def forward(self, inner: View, x: Any) -> Any:
        router, out = self.shared, inner(x)
        assert isinstance(router, XLoraRouter)
        weights = router.weights(self.number, x.shape if inner.base.kind == "embedding" else x.shape[:-1])
        if weights is None:
            return out
        for name, weight in zip(router.routes, weights.unbind(-1), strict=True):
            expert = inner.host.adapter(name)
            if isinstance(expert, Lora):
                out = out + weight[..., None] * expert.update(inner.base, x)
        return out

    @classmethod
    def build_shared(cls, config: XLoraConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> nn.Module:
        return XLoraRouter(config, layers, dtype)
