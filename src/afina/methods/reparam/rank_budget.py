"""AdaLoRA's controller: how many ranks remain at a step, and which (Zhang et al. 2023, arXiv 2303.10512)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .adalora import AdaLora

_NAMES = ("lora_E", "lora_A", "lora_B")


class RankBudget(nn.Module):
    """Shared by all layers of one adapter; holds no parameters.

    Attributes:
        layers: how many layers share the budget.
    """

    offers = frozenset({"update_and_allocate"})

    def __init__(self, config: Any, layers: int) -> None:
        super().__init__()
        self.config, self.layers = config, layers
        self.members: tuple[AdaLora, ...] = ()
        self.smoothed: dict[tuple[str, str], Tensor] = {}
        self.spread: dict[tuple[str, str], Tensor] = {}

    def join(self, adapter: AdaLora) -> None:
        """Add a layer whose ranks may be pruned."""
        # In a tuple, because its parameters belong to its layer.
        self.members = (*self.members, adapter)

    def budget(self, step: int) -> int:
        """Ranks left over all layers: all during warm-up, then falling with the cube of the remaining time."""
        c = self.config
        first, last = c.init_r * self.layers, c.target_r * self.layers
        left = 1 - (step - c.tinit) / (c.total_step - c.tfinal - c.tinit)
        return int((first - last) * min(max(left, 0.0), 1.0) ** 3 + last)

    @torch.no_grad()
    def update_and_allocate(self, global_step: int) -> None:
        """Take the present gradients into account and prune; call it after `optimizer.step()`, before `zero_grad()`."""
        c, final = self.config, self.config.total_step - self.config.tfinal
        if global_step <= final and c.rank_pattern is None:
            if global_step < final:
                self._observe()
            if global_step == final or (global_step > c.tinit and global_step % c.deltaT == 0):
                self._prune(self.budget(global_step), fix=global_step == final)
        for member in self.members:
            if member.kept is not None:
                _keep(member, torch.tensor(member.kept, device=member.lora_E.device))

    def _observe(self) -> None:
        for member in self.members:
            for name in _NAMES:
                parameter: nn.Parameter = getattr(member, name)
                if parameter.grad is None:
                    continue
                key, now = (member.name, name), (parameter * parameter.grad).abs()
                zero = torch.zeros_like(now)
                smooth = self.config.beta1 * self.smoothed.get(key, zero) + (1 - self.config.beta1) * now
                deviation = (1 - self.config.beta2) * (now - smooth).abs()
                self.spread[key] = self.config.beta2 * self.spread.get(key, zero) + deviation
                self.smoothed[key] = smooth

    def _importance(self, member: AdaLora) -> Tensor:
        """(r,)"""
        e, a, b = (self.smoothed[member.name, n] * self.spread[member.name, n] for n in _NAMES)
        return e[:, 0] + a.mean(1) + b.mean(0)

    def _prune(self, budget: int, fix: bool) -> None:
        scores = [self._importance(m) for m in self.members if (m.name, "lora_E") in self.smoothed]
        if len(scores) < len(self.members) or not scores:
            return
        every = torch.cat([s.to(scores[0].device) for s in scores])
        excess = every.numel() - budget
        threshold = torch.kthvalue(every, excess).values if excess > 0 else every.min() - 1
        pattern = {}
        for member, score in zip(self.members, scores, strict=True):
            keep = score > threshold.to(score.device)
            _keep(member, keep)
            pattern[member.name] = keep.tolist()
            if fix:
                member.kept = keep.tolist()
        if fix:
            self.config.rank_pattern = pattern
            self.smoothed, self.spread = {}, {}

    # -- interrupted training ---------------------------------------------------------------------------------------

    def training_state(self) -> dict[str, Tensor]:
        """What an adapter's file lacks of an unfinished run: the importances or, once the budget is final, which ranks
        survive and the vectors of the others (the penalty still sees them)."""
        out = {f"smoothed/{m}/{n}": t for (m, n), t in self.smoothed.items()}
        out |= {f"spread/{m}/{n}": t for (m, n), t in self.spread.items()}
        for member in self.members:
            if member.kept is not None:
                out[f"kept/{member.name}"] = torch.tensor(member.kept)
                out |= {f"value/{member.name}/{n}": getattr(member, n).detach() for n in _NAMES}
        return out

    def before_resume(self, state: Mapping[str, Tensor]) -> None:
        """Expect the checkpoint's file to hold the surviving ranks alone, if it does."""
        for member in self.members:
            if (kept := state.get(f"kept/{member.name}")) is not None:
                member.kept = kept.tolist()
        if any(m.kept is not None for m in self.members):
            self.config.rank_pattern = {m.name: m.kept for m in self.members}

    @torch.no_grad()
    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `training_state` was taken; the adapter's file has been loaded."""
        for member in self.members:
            for name in _NAMES:
                parameter: nn.Parameter = getattr(member, name)
                for part, held in (("smoothed", self.smoothed), ("spread", self.spread)):
                    if (value := state.get(f"{part}/{member.name}/{name}")) is not None:
                        held[member.name, name] = value.to(parameter)
                if (value := state.get(f"value/{member.name}/{name}")) is not None:
                    parameter.copy_(value)


def _keep(member: AdaLora, keep: Tensor) -> None:
    """Set the singular values of all other ranks to zero."""
    member.lora_E.mul_(keep[:, None])
