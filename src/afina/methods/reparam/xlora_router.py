"""X-LoRA's router: the first pass over the model, and the classifier.

`xlora.py` has the method; shapes are B batch, T tokens, L adapted layers, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.caches import given_cache
from ...core.layers.weights import BaseWeight
from ...errors import ConfigError
from .xlora_controls import XLoraControls

if TYPE_CHECKING:
    from .xlora import XLoraConfig


class Classifier(nn.Module):
    """Hidden states (B, T, hidden) to logits, one for each expert (and layer); the file's names are the reference's."""

    def __init__(self, config: XLoraConfig, outputs: int) -> None:
        super().__init__()
        assert config.hidden_size is not None
        sizes = [config.hidden_size, *[config.xlora_size] * (config.xlora_depth - 1)]
        hidden: list[nn.Module] = []
        for width, out in pairwise(sizes):
            dropout = [nn.Dropout(config.xlora_dropout_p)] if config.xlora_dropout_p else []
            hidden += [nn.Linear(width, out), nn.ReLU(), *dropout]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], outputs))

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        out: Tensor = self.layers(hidden_BTH)
        return out


class XLoraRouter(XLoraControls):
    """Runs the model once to see the tokens, then says how much each expert counts at each token and layer."""

    # The first pass would need a cache of its own.
    generation: ClassVar[Mapping[str, Any]] = MappingProxyType({"use_cache": False})

    def __init__(self, config: XLoraConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> None:
        super().__init__(config)
        self.trains = self.routes if config.use_trainable_adapters else ()
        self.layers = {name: i for i, name in enumerate(layers)}
        outputs = len(self.routes) * (len(layers) if config.layerwise_scalings else 1)
        device = next((base.device for base in layers.values()), None)
        self.internal_xlora_classifier = Classifier(config, outputs).to(device=device, dtype=dtype)

    # -- deciding ---------------------------------------------------------------------------------------------------

    def route(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if given_cache(kwargs) is not None:
            raise ConfigError("X-LoRA needs the whole sequence in every pass", where="past_key_values",
                              fix="pass use_cache=False")  # fmt: skip
        plain = {k: v for k, v in kwargs.items() if k != "labels"}
        notes = self.notes
        notes["scalings"] = None  # not decided yet: what runs now is the first pass
        with torch.no_grad():
            out = model.forward(*args, **plain | {"output_hidden_states": True, "return_dict": True})
        states = getattr(out, "hidden_states", None)
        if states is None:
            raise ConfigError("X-LoRA needs a model that returns its hidden states", where=type(model).__name__)
        notes["scalings"] = self.scalings = self._classified(states[-1])
        if self.logging:
            self.log.append(self.scalings.detach())

    def _classified(self, hidden_BTH: Tensor) -> Tensor:
        """(B, T, L, E)."""
        first = next(self.internal_xlora_classifier.parameters())
        logits = self.internal_xlora_classifier(hidden_BTH.to(first))
        rows, experts = hidden_BTH.shape[:2], len(self.routes)
        # Without layers of their own, all share one mixture.
        logits = logits.view(*rows, -1, experts).expand(*rows, len(self.layers), experts)
        if self.config.enable_softmax:
            logits = (logits / self.config.softmax_temperature).softmax(-1)
        out: Tensor = logits
        return out

    def weights(self, layer: int, shape: torch.Size) -> Tensor | None:
        """How much each expert counts at a layer whose input has `shape` positions: (*shape, E); None for not at all.

        Raises:
            ConfigError: the layer does not see the model's tokens one by one.
        """
        if "scalings" not in self.notes:
            raise ConfigError("X-LoRA has not seen this input", where="forward",
                              fix="activate it with set_adapter, and call the whole model")  # fmt: skip
        scalings: Tensor | None = self.notes["scalings"]
        if scalings is None:
            if not self.config.scaling_pass_value:
                return None
            device = next(self.parameters()).device
            weights = torch.full((*shape, len(self.routes)), self.config.scaling_pass_value, device=device)
        else:
            weights = scalings[:, :, layer]
            if shape not in (weights.shape[:2], weights.shape[:2].numel() * torch.Size([1])):
                raise ConfigError("the layer's input is not (batch, tokens, ...)", where=list(self.layers)[layer],
                                  got=tuple(shape), expected=tuple(weights.shape[:2]))  # fmt: skip
            weights = weights.reshape(*shape, len(self.routes))
        return self._largest(weights) * self.config.global_scaling_weight

    def _largest(self, weights: Tensor) -> Tensor:
        """The `top_k_lora` largest (zero for the others), normalised again if `enable_softmax_topk`."""
        count = self.config.top_k_lora
        if count is None:
            return weights
        chosen = torch.zeros_like(weights, dtype=torch.bool).scatter(-1, weights.topk(count, dim=-1).indices, True)
        if not self.config.enable_softmax_topk:
            return weights * chosen
        return weights.masked_fill(~chosen, float("-inf")).softmax(-1)
