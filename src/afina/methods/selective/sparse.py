"""Sparse fine-tuning: train a small, fixed set of single weights.

    W' = W + Δ,   Δ zero outside a mask: random, the largest |W|, or the largest |gradient| or Fisher information

Random and magnitude masks: Xu et al. 2021 (Child-Tuning), arXiv 2109.05687; Fisher masks: Sung, Nair, Raffel 2021,
arXiv 2111.09839; Ansell et al. 2022, arXiv 2110.07560. Stored as indices and values. Trainable: density · out · in ·
kernel a layer (at least one). Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d, Embedding, attention.
Gradient and Fisher masks need `preprocess_sparse(model, config, train_step)` first; without targets, all linear layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import DeltaWeight, Site
from ...core.inject.targets import select_slots, settle
from ...core.layers.recognise import base_weight
from ...errors import ConfigError
from ..initialisers.gather import plain

PUBLIC = ("preprocess_sparse",)


@dataclass(kw_only=True)
class SparseConfig(LayerConfig):
    """Configuration of sparse fine-tuning.

    Attributes:
        density: the share of a layer's weights that train.
        selection: how they are chosen.
        seed: of the random mask.
    """

    density: float = bounded(0.005, gt=0, le=1)
    selection: Literal["random", "magnitude", "gradient", "fisher"] = "magnitude"
    seed: int = 0

    needs: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "seed": ("selection", "random"),
    }
    default_learning_rate: ClassVar[float] = 3e-4

    def own_targets(self, model: Any) -> str:
        return "all-linear"


@register("SPARSE", SparseConfig)
class Sparse(DeltaWeight):
    """`sparse_values`: (n,); `sparse_indices`: (n,) positions in the flattened canonical weight."""

    steady: ClassVar[bool] = True
    prefix = "sparse_"

    def __init__(self, site: Site, config: SparseConfig) -> None:
        super().__init__(site, config)
        size = math.prod(site.base.shape)
        count = max(1, round(config.density * size))
        self.sparse_values = site.zeros(count)
        if site.device.type == "meta":
            indices = torch.empty(count, dtype=torch.int64, device="meta")
        else:
            indices = self._choose(site, config, count, size).sort().values
        self.register_buffer("sparse_indices", indices)

    @staticmethod
    def _choose(site: Site, config: SparseConfig, count: int, size: int) -> Tensor:
        if config.selection == "random":
            generator = torch.Generator().manual_seed(config.seed)
            return torch.randperm(size, generator=generator)[:count].to(site.base.device)
        if config.selection == "magnitude":
            scores = site.base.read()[0].detach().abs()
        elif site.statistics is None:
            raise ConfigError("this selection needs gradients", where=f"selection={config.selection!r} at {site.name}",
                              fix="call preprocess_sparse(model, config, train_step) first")  # fmt: skip
        else:
            scores = site.statistics
        return scores.flatten().topk(count).indices.to(site.base.device)

    def delta(self, weight: Tensor) -> Tensor:
        flat = weight.new_zeros(weight.numel()).index_copy(0, self.get_buffer("sparse_indices"), self.sparse_values)
        return flat.view(weight.shape)


def preprocess_sparse(model: Any, config: SparseConfig, train_step: Callable[[], Any]) -> None:
    """Score the targets' weights; afterwards `get_peft_model(model, config)` finds the scores in `config.statistics`.

    Args:
        model: the plain model; its weights, gradients and flags stay as they were.
        config: with `selection="gradient"` or "fisher"; takes the scores.
        train_step: runs forward and backward on one calibration batch; it is called once for every backward pass that
            counts, by calling `backward` inside it as often as there are batches.

    Raises:
        ConfigError: a target got no gradient, or is quantised.
    """
    config.target_modules = settle(model, config)
    found = {s.name: base_weight(plain(s.module)) for s in select_slots(model, config)}
    quantised = next((n for n, base in found.items() if base.quantised), None)
    if quantised:
        raise ConfigError("a quantised weight has no gradient", where=quantised,
                          fix="choose on the unquantised model, or by magnitude")  # fmt: skip
    scores: dict[str, Tensor] = {}
    before = {id(p): (p.requires_grad, p.grad) for p in model.parameters()}
    hooks = []

    def watch(name: str) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient = parameter.grad.float()
            new = gradient.square() if config.selection == "fisher" else gradient.abs()
            scores[name] = scores[name] + new if name in scores else new
            parameter.grad = None

        return take

    try:
        for name, base in found.items():
            base.weight.requires_grad_(True)
            hooks.append(base.weight.register_post_accumulate_grad_hook(watch(name)))  # type: ignore[no-untyped-call]
        with torch.enable_grad():
            train_step()
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in model.parameters():
            wanted, gradient = before[id(parameter)]
            parameter.requires_grad_(wanted)
            parameter.grad = gradient
    missing = next((n for n in found if n not in scores), None)
    if missing:
        raise ConfigError("the layer got no gradient", where=missing, fix="call loss.backward() in train_step")
    config.statistics = {n: found[n].canonical(s) for n, s in scores.items()}  # type: ignore[attr-defined]
