"""FRoD: layers of one kind share a basis V; each trains the diagonal and a few other entries of its matrix in it.

    W_i = U_i diag(l_i) Vᵀ for all layers i of a category;   W_i' = U_i (S_i + diag(l_i')) Vᵀ,   S sparse, zero at first
    V: eigenvectors of Σ_{i≠j} D_i D_j⁻¹, D_i = W_iᵀ W_i + ε I (one layer: its right singular vectors)

doi 10.1609/aaai.v40i31.39813 (AAAI 2026). A category is the last two parts of the modules' paths. ε is here
`regularization_alpha` times the mean of W_iᵀ W_i's diagonal, V's columns have length one, W keeps its bits. V and the
places of S are stored, or (`save_projection` off) follow from base and seed, other than the reference's. That takes V
from a file but U from a V of its own, and so misreads files of others: exchange works from there to here alone.
Trainable: in + sparse_rate · in² a layer. Mergeable. Layers: Linear, Conv1D.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import DeltaWeight, Site
from ...core.hosts.view import View
from ...core.layers.weights import BaseWeight
from ...errors import CheckpointError, ConfigError
from .joint_basis import joint_basis


@dataclass(kw_only=True)
class FrodConfig(LayerConfig):
    """Configuration of FRoD; fields as in the reference.

    Attributes:
        projection_prng_key: seed of S's places.
        save_projection: store V and S's places; otherwise they are computed from the base and the seed.
        frod_dropout: dropout on the layer's input.
        sparse_rate: trained entries of S, as a share of in².
        regularization_alpha: what ε is made of.
        progressbar: kept for the reference's files, without effect.
        runtime_offload_base_weight: kept for the reference's files, without effect.
    """

    projection_prng_key: int = bounded(0, ge=0)
    save_projection: bool = True
    frod_dropout: float = bounded(0.0, ge=0, lt=1)
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_weights: bool = True
    sparse_rate: float = bounded(0.01, gt=0, le=1)
    regularization_alpha: float = bounded(0.001, gt=0)
    progressbar: bool = True
    runtime_offload_base_weight: bool = False

    needs: ClassVar[Mapping[str, tuple[str | None, Any]]] = {
        "runtime_offload_base_weight": (None, "layers are read where they lie"),
    }

    default_learning_rate: ClassVar[float] = 1e-3


def category(name: str) -> str:
    """The last two parts of a module's path, or the last alone where the other is a number."""
    parts = name.split(".")[-2:]
    return "_".join(parts[-1:] if parts[0].isdecimal() else parts)


class Bases(nn.Module):
    """Buffers, by category: `frod_V` (in, in), `frod_s_indices` (2, n), `frod_s_size` (2,); by layer, not stored: `U`
    (out, in) with columns of length one, and `l` (in,)."""

    def __init__(self, config: FrodConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> None:
        super().__init__()
        self.frod_V, self.frod_s_indices, self.frod_s_size = nn.Module(), nn.Module(), nn.Module()
        self.layers, self.kinds = dict(layers), {name: category(name) for name in layers}
        self.numbers = {name: i for i, name in enumerate(layers)}
        members: dict[str, list[BaseWeight]] = {}
        for name, base in layers.items():
            members.setdefault(self.kinds[name], []).append(base)
        numbers = torch.Generator().manual_seed(config.projection_prng_key)
        for kind, bases in members.items():
            width, device = bases[0].in_features, bases[0].device
            if any(b.in_features != width for b in bases):
                raise ConfigError("layers of one category need one number of inputs", where=f"target_modules: {kind}",
                                  got=sorted({b.in_features for b in bases}), expected="equal",
                                  fix="adapt them one kind at a time")  # fmt: skip
            with torch.no_grad():
                V = joint_basis([b.read()[0] for b in bases], config.regularization_alpha)
            count = max(1, int(config.sparse_rate * width * width))
            # Off the diagonal, which has its own numbers: of the cells of row i, those from i on are one further.
            cells = torch.randperm(width * (width - 1), generator=numbers)[:count] if width > 1 else torch.zeros(0)
            rows, columns = cells.long() // max(1, width - 1), cells.long() % max(1, width - 1)
            places = torch.stack([rows, columns + (columns >= rows)])
            values = (V.to(dtype).contiguous(), places.to(device), torch.tensor([width, width], device=device))
            for holder, value in zip((self.frod_V, self.frod_s_indices, self.frod_s_size), values, strict=True):
                holder.register_buffer(kind, value, persistent=config.save_projection)
        self._solve()

    @torch.no_grad()
    def _solve(self) -> None:
        """U and l of every layer, from the base and V."""
        for name, base in self.layers.items():
            V = self.frod_V.get_buffer(self.kinds[name])
            weight = base.read()[0].double()
            columns_T, singular = torch.linalg.solve_ex(V.to(weight), weight.T)
            if not singular.is_meta and int(singular):
                raise CheckpointError("its directions are not independent", where=f"frod_V.{self.kinds[name]}")
            columns = columns_T.T
            # A direction that the weight does not have gets a column of zeros, and l zero.
            lengths = torch.linalg.vector_norm(columns, dim=0)
            U = columns / lengths.clamp_min(torch.finfo(V.dtype).tiny)
            self.register_buffer(f"U_{self.numbers[name]}", U.to(V.dtype), persistent=False)
            self.register_buffer(f"l_{self.numbers[name]}", lengths.to(V.dtype), persistent=False)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        result = super().load_state_dict(*args, **kwargs)
        for kind, places in self.frod_s_indices.named_buffers():
            width = len(self.frod_V.get_buffer(kind))
            if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < width:
                raise CheckpointError("a place lies outside the matrix", where=f"frod_s_indices.{kind}",
                                      got=int(places.max()), expected=f"< {width}")  # fmt: skip
        self._solve()
        return result

    def of(self, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """U, l, V and the places of S at a layer."""
        number, kind = self.numbers[name], self.kinds[name]
        return (self.get_buffer(f"U_{number}"), self.get_buffer(f"l_{number}"), self.frod_V.get_buffer(kind),
                self.frod_s_indices.get_buffer(kind))  # fmt: skip


@register("FROD", FrodConfig)
class Frod(DeltaWeight):
    """`frod_lambda_l`: (in,), `frod_lambda_s_values`: (n,)."""

    steady: ClassVar[bool] = True
    prefix = "frod_"
    kinds = frozenset({"linear"})
    shared: Any

    def __init__(self, site: Site, config: FrodConfig) -> None:
        super().__init__(site, config)
        self.share(site.shared)
        self.place = site.name
        _, lengths, _, places = self.shared.of(site.name)
        self.frod_lambda_l = nn.Parameter(lengths.to(site.device, site.dtype).clone())
        self.frod_lambda_s_values = site.zeros(places.shape[1])
        if not config.init_weights:
            nn.init.normal_(self.frod_lambda_s_values, std=0.1)
        self.drop(config.frod_dropout)

    def _change(self) -> tuple[Tensor, Tensor, Tensor]:
        """U, S + diag(l' - l) and V: ΔW = U (S + diag(l' - l)) Vᵀ."""
        l = self.frod_lambda_l  # noqa: E741 - the paper's name
        U, start, V, places = self.shared.of(self.place)
        U, start, V = (t.to(l) for t in (U, start, V))
        middle = torch.diag(l - start).index_put(tuple(places.to(l.device)), self.frod_lambda_s_values)
        return U, middle, V

    def delta(self, weight: Tensor) -> Tensor:
        U, middle, V = self._change()
        return U @ middle @ V.T

    def forward(self, inner: View, x: Any) -> Any:
        U, middle, V = self._change()
        dropped = self.dropped(x)
        return inner(x) + F.linear(F.linear(dropped @ V, middle), U)

    @classmethod
    def build_shared(cls, config: FrodConfig, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> nn.Module:
        return Bases(config, layers, dtype)
