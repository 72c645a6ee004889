"""Arrow: every token goes to the trained LoRAs whose own direction it has most of.

    y = W x + Σ_e a_e · s_e B_e A_e x,   a = softmax over the top k of |x · v_e| / temperature

Ostapenko et al. 2024, arXiv 2405.11157. v_e is the first right singular vector of B_e A_e. General knowledge
subtraction (GenKnowSub, ACL 2025, short paper 54) replaces every A_e and B_e by their difference from the mean A and
B of general adapters. The experts are the other LoRAs on the same layer, also those loaded later, as in the
reference; unlike there, their weights stay as they are, v_e is exact (the reference iterates 15 times from a random
start), and it follows the weights when they change. Trainable: nothing; the router has an A and a B of its own only
because the reference's files do. To train experts through the router, let them with `set_requires_grad`. Not
mergeable. Layers: Linear, Conv1D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.hosts.adapter import Site
from ...core.hosts.host import Host
from ...core.hosts.view import View
from ...errors import ConfigError, NotMergeable
from .lora import Lora
from .lora_config import LoraConfig

Factors = tuple[Tensor, Tensor]


def direction(A_RI: Tensor, B_OR: Tensor) -> Tensor:
    """The first right singular vector (in,) of B A, up to its sign; zero where B A is zero."""
    Q_IR, L_RR = torch.linalg.qr(A_RI.mT.float())
    _, K_RR = torch.linalg.qr(B_OR.float())
    _, sizes, V_RR = torch.linalg.svd(K_RR @ L_RR.mT, full_matrices=False)
    out: Tensor = Q_IR @ V_RR[0] * (sizes[0] > 0)
    return out.to(A_RI.dtype)


@Lora.variant(lambda config: config.arrow_config is not None)
class Arrow(Lora):
    """The router of one layer."""

    kinds = frozenset({"linear"})
    prototypes: Tensor | None

    def __init__(self, site: Site, config: LoraConfig) -> None:
        super().__init__(site, config)
        assert config.arrow_config is not None
        self.settings = config.arrow_config
        self.untrained = frozenset(n for n, _ in self.named_parameters())
        self.requires_grad_(False)
        self.register_buffer("prototypes", None, persistent=False)
        self.seen: tuple[tuple[Tensor, int], ...] = ()

    @staticmethod
    def _loras(host: Host) -> dict[str, Lora]:
        """The experts and general adapters of the layer."""
        found = {n: host.adapter(n) for n in host.names()}
        return {n: a for n, a in found.items() if isinstance(a, Lora) and not isinstance(a, Arrow)}

    def _experts(self, host: Host) -> tuple[list[float], list[Factors]]:
        """Their scalings, and their factors after general knowledge was subtracted."""
        general = (self.settings.gks_adapter_names or []) if self.settings.use_gks else []
        loras = self._loras(host)
        odd = next((n for n, a in loras.items() if type(a).forward is not Lora.forward), None)
        if odd is not None:
            raise ConfigError("only plain LoRA can be routed", where=odd, got=type(loras[odd]).__name__)
        experts = [a for n, a in loras.items() if n not in general]
        if len(experts) < self.settings.top_k:
            raise ConfigError("fewer experts than top_k", where=type(host.base_layer).__name__, got=len(experts),
                              expected=f"at least {self.settings.top_k}")  # fmt: skip
        factors, known = ([(A.to(self.dtype), B.to(self.dtype)) for A, B in (a.factors() for a in adapters)]
                          for adapters in (experts, [loras[n] for n in general if n in loras]))  # fmt: skip
        if known:
            if len({(A.shape, B.shape) for A, B in (*known, *factors)}) > 1:
                raise ConfigError("general knowledge can only be subtracted from experts of the same rank",
                                  where="use_gks")  # fmt: skip
            mean_A, mean_B = (torch.stack([pair[i] for pair in known]).mean(0) for i in (0, 1))
            factors = [(A - mean_A, B - mean_B) for A, B in factors]
        return [e.scaling for e in experts], factors

    def _directions(self, host: Host, factors: list[Factors]) -> Tensor:
        """(experts, in); kept until one of the weights changes."""
        with torch.no_grad():
            if torch.compiler.is_compiling():
                # Compiled code cannot ask whether a weight has changed.
                return torch.stack([direction(A, B) for A, B in factors])
            now = tuple((t, t._version) for a in self._loras(host).values() for t in a.parameters())
            same = len(now) == len(self.seen) and all(
                t is u and v == w for (t, v), (u, w) in zip(now, self.seen, strict=True)
            )
            if not same or self.prototypes is None:
                self.prototypes, self.seen = torch.stack([direction(A, B) for A, B in factors]), now
            return self.prototypes

    def forward(self, inner: View, x: Any) -> Any:
        scalings, factors = self._experts(inner.host)
        similarity = (x @ self._directions(inner.host, factors).mT).abs()
        top = similarity.topk(self.settings.top_k, dim=-1)
        shares = (top.values / self.settings.router_temperature).softmax(-1)
        weights = torch.zeros_like(similarity).scatter(-1, top.indices, shares.to(similarity.dtype))
        update = torch.zeros_like(weights[..., :1])
        for weight, s, (A, B) in zip(weights.unbind(-1), scalings, factors, strict=True):
            update = update + weight[..., None] * s * inner.base.low_rank(x, A, B)
        return inner(x) + self.lora_dropout(update)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        raise NotMergeable("each token has a mixture of its own", where=type(self).__name__)
