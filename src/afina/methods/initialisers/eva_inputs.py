"""EVA's view of the data: what counts of a batch, and the principal directions of each layer's inputs as they come."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from . import gather
from .eva_ranks import EvaConfig, redistribute
from .incremental_pca import IncrementalPca
from .start import check_finite, check_rank, settings


def forward_fn_dict(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Run the model on a batch given as keyword arguments, on the model's device."""
    device = next(model.parameters()).device
    return model(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()})


def prepare_model_inputs_fn_language_modeling(model_input: Any, peft_config: Any) -> Tensor | None:
    """The positions (batch, time) that count: attended, and with a label if the config says so; None for all."""
    options = settings(EvaConfig, peft_config.eva_config)
    masks = []
    if isinstance(model_input, Mapping) and model_input.get("attention_mask") is not None:
        masks.append(model_input["attention_mask"].bool())
    if options.use_label_mask and isinstance(model_input, Mapping) and model_input.get("labels") is not None:
        masks.append(model_input["labels"] != options.label_mask_value)
    return None if not masks else torch.stack(masks).all(0)


def prepare_layer_inputs_fn_language_modeling(layer_input: Any, model_input: Any, layer_name: str) -> Tensor:
    """The rows (N, in) of a layer's input at the positions that count; all of a layer that sees other positions."""
    x: Tensor = layer_input[0] if isinstance(layer_input, tuple) else layer_input
    if isinstance(model_input, Tensor) and model_input.shape == x.shape[:-1]:
        return x[model_input.to(x.device)]
    return x.reshape(-1, x.shape[-1])


LayerInputs = Callable[[Any, Any, str], Tensor]


class Watch:
    """The incremental decompositions of all targets while the model runs."""

    def __init__(self, modules: Mapping[str, nn.Module], config: Any, for_model: Any, for_layer: Any) -> None:
        self.config, self.options = config, settings(EvaConfig, config.eva_config)
        self.for_model, self.for_layer = for_model, for_layer
        self.model_input: Any = None
        self.found: dict[str, IncrementalPca] = {}
        self.waiting: dict[str, list[Tensor]] = {}
        self.ranks = {n: int(config.rank_at(n)) for n in modules}
        for name, module in modules.items():
            weight = gather.weight_of(module)
            limit = min(weight.out_features, weight.in_features)
            wanted = min(limit, math.ceil(self.ranks[name] * self.options.rho))
            check_rank(torch.empty(weight.shape, device="meta"), self.ranks[name])
            self.found[name] = IncrementalPca(wanted, weight.in_features, weight.device)
            self.waiting[name] = []

    def begin(self, batch: Any) -> None:
        self.model_input = batch if self.for_model is None else self.for_model(batch, self.config)

    def see(self, name: str, args: Any, kwargs: Any) -> None:
        prepare = self.for_layer.get(name) if isinstance(self.for_layer, Mapping) else self.for_layer
        layer_input = args[0] if args else next(iter(kwargs.values()))
        rows_NI = (prepare or prepare_layer_inputs_fn_language_modeling)(layer_input, self.model_input, name)
        check_finite(rows_NI, "an input", name)
        self.waiting[name].append(rows_NI.detach().float())

    def settled(self) -> list[str]:
        """Take in what came; the layers whose directions no longer turn."""
        done = []
        for name, pca in self.found.items():
            if sum(map(len, self.waiting[name])) < pca.components:
                continue
            self._take(name)
            if pca.similarity >= self.options.tau:
                done.append(name)
        return done

    def _take(self, name: str) -> None:
        rows, self.waiting[name] = self.waiting[name], []
        self.found[name].update(torch.cat(rows))

    def result(self) -> dict[str, Tensor]:
        for name, rows in self.waiting.items():
            if sum(map(len, rows)):
                self._take(name)
        gather.check_seen([n for n, p in self.found.items() if p.count], self.found, "data")
        for name, pca in self.found.items():
            if pca.count <= self.ranks[name]:
                raise ConfigError("too few rows for the rank", where=name, got=pca.count,
                                  expected=f"more than {self.ranks[name]}", fix="give more data")  # fmt: skip
        ranks = redistribute({n: p.explained for n, p in self.found.items()}, sum(self.ranks.values()))
        return {n: self._directions(n, r) for n, r in ranks.items() if r}

    def _directions(self, name: str, rank: int) -> Tensor:
        pca = self.found[name]
        directions_KI = pca.directions_KI[:rank]
        return directions_KI / pca.deviations[:rank, None] if self.options.whiten else directions_KI
