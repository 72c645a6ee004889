"""AdaMSS's controller: how many subspaces still learn at a step, and which (its adaptive subspace allocation)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .adamss import Adamss


class SubspaceBudget(nn.Module):
    """Shared by all layers of one adapter; holds no parameters.

    A subspace's importance is the mean over its A plus that over its B of the smoothed |parameter · gradient| times its
    smoothed spread, gathered anew after every choice. Subspaces that are left out keep their values and stop learning.
    """

    offers = frozenset({"update_and_allocate"})

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.members: tuple[Adamss, ...] = ()
        self.smoothed: dict[str, Tensor] = {}
        self.spread: dict[str, Tensor] = {}

    def join(self, adapter: Adamss) -> None:
        """Add a layer whose subspaces may be left out."""
        # In a tuple, because its parameters belong to its layer.
        self.members = (*self.members, adapter)

    def budget(self, step: int) -> int:
        """Subspaces that learn, over all layers: all at `init_warmup`, `asa_target_subspaces` at `final_warmup`."""
        c, every = self.config, sum(len(m.adamss_A) for m in self.members)
        left = 1 - (step - c.init_warmup) / (c.final_warmup - c.init_warmup)
        target = c.asa_target_subspaces
        return int(target + (every - target) * min(max(left, 0.0), 1.0) ** c.asa_schedule_exponent)

    @torch.no_grad()
    def update_and_allocate(self, global_step: int) -> None:
        """Take the present gradients into account and choose; call it after the backward pass, before `zero_grad()`."""
        if not self.config.init_warmup <= global_step <= self.config.final_warmup:
            return
        for member in self.members:
            for name, parameter in member.named_parameters():
                if parameter.grad is not None:
                    self._observe(f"{member.name}.{name}", parameter, parameter.grad)
        if global_step % self.config.mask_interval == 0:
            self._choose(self.budget(global_step))
            self.smoothed, self.spread = {}, {}

    def _observe(self, key: str, parameter: Tensor, gradient: Tensor) -> None:
        now, zero = (parameter * gradient).abs(), torch.zeros_like(parameter)
        smooth, beta1, beta2 = (
            self.smoothed.get(key, zero), self.config.asa_importance_beta, self.config.asa_uncertainty_beta
        )  # fmt: skip
        self.spread[key] = beta2 * self.spread.get(key, zero) + (1 - beta2) * (now - smooth).abs()
        self.smoothed[key] = beta1 * smooth + (1 - beta1) * now

    def _choose(self, budget: int) -> None:
        scores: list[tuple[float, Adamss, int]] = []
        for member in self.members:
            for i in range(len(member.adamss_A)):
                keys = [f"{member.name}.adamss_{letter}.{i}" for letter in "AB"]
                if all(k in self.smoothed for k in keys):
                    scores.append((sum(float((self.smoothed[k] * self.spread[k]).mean()) for k in keys), member, i))
        for _, member, i in sorted(scores, key=lambda s: -s[0])[budget:]:
            member.stop(i)

    # -- interrupted training ---------------------------------------------------------------------------------------

    def training_state(self) -> dict[str, Tensor]:
        """What an adapter's file lacks of an unfinished run: the importances, and which subspaces learn no more."""
        out = {f"smoothed/{k}": t for k, t in self.smoothed.items()} | {
            f"spread/{k}": t for k, t in self.spread.items()
        }
        return out | {f"stopped/{m.name}": torch.tensor(sorted(m.stopped)) for m in self.members if m.stopped}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `training_state` was taken; the adapter's file has been loaded."""
        for member in self.members:
            for name, parameter in member.named_parameters():
                for part, held in (("smoothed", self.smoothed), ("spread", self.spread)):
                    if (value := state.get(f"{part}/{member.name}.{name}")) is not None:
                        held[f"{member.name}.{name}"] = value.to(parameter)
            for k in state.get(f"stopped/{member.name}", torch.zeros(0)).tolist():
                member.stop(k)
