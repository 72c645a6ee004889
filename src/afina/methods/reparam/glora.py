"""GLoRA: the weight and the bias are scaled and shifted, each by a matrix of chosen form.

    W' = W + W ∘ A + B,   b' = b + b ∘ D + E + W C

Chavan et al. 2023, arXiv 2306.07967. A, B: low rank, one number an output ("vector"), one number ("constant") or
absent; C: low rank, a vector or absent; D, E: a vector, a constant or absent. A layer without a bias has A and B
alone. Trainable, for low rank A, B, C and constant D, E: 2 r (in + out) + r (in + 1) + 2 a layer (in · kernel for
convolutions). Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Site, WeightTransform
from ...errors import ConfigError

_FORMS = (
    ("config_A_B", ("lora", "vector", "constant", "none")),
    ("config_C", ("lora", "vector", "none")),
    ("config_D_E", ("vector", "constant", "none")),
)


@dataclass(kw_only=True)
class GloraConfig(LayerConfig):
    """Configuration of GLoRA; fields as in the reference.

    Attributes:
        r: rank of matrices whose form is "lora".
        config_A_B: form of A and B: "lora", "vector", "constant" or "none".
        config_C: form of C: "lora", "vector" or "none".
        config_D_E: form of D and E: "vector", "constant" or "none".
    """

    r: int = bounded(8, ge=1, le=2**20)
    bias: str = "none"
    config_A_B: str = "lora"
    config_C: str = "lora"
    config_D_E: str = "constant"
    init_weights: bool = True

    default_learning_rate: ClassVar[float] = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, allowed in _FORMS:
            if getattr(self, key) not in allowed:
                raise ConfigError("unknown form", where=key, got=getattr(self, key), expected=", ".join(allowed))


@register("GLORA", GloraConfig)
class Glora(WeightTransform):
    """Each of `glora_A` ... `glora_E` holds `Xd` and `Xu`, or `X`, or nothing."""

    steady: ClassVar[bool] = True
    prefix = "glora_"
    kinds = frozenset({"linear", "conv"})

    def __init__(self, site: Site, config: GloraConfig) -> None:
        super().__init__(site, config)
        out, width = site.base.out_features, math.prod(site.base.shape[1:])
        self.random, self.r = not config.init_weights, config.r
        for_bias = ("none", "none") if site.base.bias is None else (config.config_C, config.config_D_E)
        self.glora_A, self.glora_B = (self._path(site, config.config_A_B, (out, width), (out, 1)) for _ in "AB")
        self.glora_C = self._path(site, for_bias[0], (width, 1), (width, 1))
        self.glora_D, self.glora_E = (self._path(site, for_bias[1], (out,), (out,)) for _ in "DE")
        shapes = {"A": (out, width), "B": (out, width), "C": (width, 1), "D": (out,), "E": (out,)}
        self.absent = {f"glora_{k}.zeros": s for k, s in shapes.items() if not len(getattr(self, f"glora_{k}"))}

    def _path(self, site: Site, form: str, shape: tuple[int, ...], vector: tuple[int, ...]) -> nn.ParameterDict:
        if form == "none":
            return nn.ParameterDict()
        if form == "lora":
            down, up = site.zeros(shape[0], self.r), site.empty(self.r, shape[1])
            for late in (up, *([down] if self.random else [])):
                nn.init.kaiming_uniform_(late, a=math.sqrt(5))
            return nn.ParameterDict({"Xd": down, "Xu": up})
        size = vector if form == "vector" else (1,)
        return nn.ParameterDict({"X": site.normal(0.02, *size) if self.random else site.zeros(*size)})

    @staticmethod
    def _value(path: nn.ParameterDict) -> Tensor | None:
        """The matrix or vector in full or in a shape that broadcasts; None where the path is absent."""
        if "Xd" in path:
            product: Tensor = path["Xd"] @ path["Xu"]
            return product
        found: Tensor | None = path.get("X")
        return found

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        flat = weight.flatten(1)
        A, B, C, D, E = map(self._value, (self.glora_A, self.glora_B, self.glora_C, self.glora_D, self.glora_E))
        changed = flat if A is None else flat + flat * A
        changed = changed if B is None else changed + B
        shift = None if C is None else (flat @ C)[:, 0]
        if E is not None:
            shift = E.expand(len(flat)) if shift is None else shift + E
        if bias is not None and D is not None:
            bias = bias + bias * D
        if shift is not None:
            bias = shift if bias is None else bias + shift
        return changed.view(weight.shape), bias

    # -- on disk: the reference writes zeros where a path is absent -------------------------------------------------

    def disk_state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**own, **{n: torch.zeros(s, dtype=self.dtype) for n, s in self.absent.items()}}

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.assign({n: t for n, t in tensors.items() if n not in self.absent})
