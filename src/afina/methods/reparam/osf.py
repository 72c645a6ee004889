"""OSF: freeze the weight's largest singular directions and train the others, orthogonally to the frozen ones.

    W' = U_high S_high V_high + U_low diag(S_low) V_low;   gradients of U_low, V_low lose their part in the frozen span

Nayak et al. 2025, arXiv 2504.07097. The frozen part is computed from the base. Trainable: l (out + in + 1) with
l = min(out, in) - effective_rank (half of it by default). Mergeable. Layers: Linear, Conv1D, attention, 2-D parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.adapter import Site, WeightTransform
from ...core.inject.architectures import DEFAULT_TARGETS
from ...core.inject.patterns import value_for
from ...core.inject.targets import linear_layers
from ...errors import ConfigError


@dataclass(kw_only=True)
class OSFConfig(LayerConfig):
    """Configuration of OSF; fields as in the reference.

    Attributes:
        effective_rank: directions that stay frozen: a number, or a share (float) of min(in, out); None for half.
        rank_pattern: names or patterns of modules -> their own `effective_rank`.
        init_weights: kept for the reference's files, without effect.
        target_svd_config: as `rank_pattern`, and before it.
    """

    effective_rank: int | float | None = bounded(None, gt=0)
    rank_pattern: dict[str, int | float] | None = None
    init_weights: bool = True
    target_svd_config: dict[str, int] | None = None

    needs: ClassVar[Mapping[str, tuple[str | None, Any]]] = {"init_weights": (None, "there is one start")}
    default_learning_rate: ClassVar[float] = 5e-5

    def own_targets(self, model: nn.Module) -> list[str] | None:
        # As in the reference: all linear layers of a model that the table of defaults does not know.
        known = getattr(getattr(model, "config", None), "model_type", None) in DEFAULT_TARGETS
        return None if known else linear_layers(model)


@register("OSF", OSFConfig)
class OSF(WeightTransform):
    """U_low: (out, l); S_low: (l,); V_low: (l, in)."""

    steady: ClassVar[bool] = True
    prefix = "osf_"
    kinds = frozenset({"linear", "attention", "parameter"})
    disk_names: ClassVar[Mapping[str, str]] = {
        "osf_U": "osf_svd_params.U_low", "osf_S": "osf_svd_params.S_low", "osf_V": "osf_svd_params.V_low",
    }  # fmt: skip

    def __init__(self, site: Site, config: OSFConfig) -> None:
        super().__init__(site, config)
        size = min(site.base.shape)
        frozen = value_for(site.name, config.rank_pattern, None) or config.effective_rank
        frozen = value_for(site.name, config.target_svd_config, frozen)
        keep = size // 2 if frozen is None else int(frozen * size) if isinstance(frozen, float) else int(frozen)
        if not 0 < keep < size:
            raise ConfigError("must leave directions to freeze and to train", where=f"effective_rank at {site.name}",
                              got=keep, expected=f"1..{size - 1}")  # fmt: skip
        U, S, V = torch.linalg.svd(site.base.read()[0].detach().float(), full_matrices=False)
        parts = U[:, keep:], S[keep:], V[keep:]
        low = (parts[0] * parts[1]) @ parts[2]
        for name, value in (("U_high", U[:, :keep]), ("V_high", V[:keep]), ("low", low)):
            self.register_buffer(name, value.to(site.dtype).contiguous(), persistent=False)
        self.osf_U, self.osf_S, self.osf_V = (
            nn.Parameter(p.to(dtype=site.dtype, device=site.device).contiguous().clone()) for p in parts
        )

    def delta(self, weight: Tensor) -> Tensor:
        """ΔW, which depends on the weight."""
        return self.merged(weight, None)[0] - weight

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        U = _without(self.osf_U, self.get_buffer("U_high"))
        V = _without(self.osf_V.T, self.get_buffer("V_high").T).T
        # The trained part takes the place of the base's own low part, on whatever earlier adapters left.
        return weight + ((U * self.osf_S) @ V - self.get_buffer("low")), bias


def _without(x: Tensor, basis: Tensor) -> Tensor:
    """`x` as it is, but whose gradient has no part in the span of the orthonormal `basis`."""
    inside = basis @ (basis.T @ x)
    return x - inside + inside.detach()
