"""Which layers to adapt, by the condition number of their weights (KappaTune, arXiv 2506.16289).

κ(W) = σ_max / σ_min; the layers with the smallest κ are the least specialised, so training them forgets least.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from ...core.inject.slots import slots
from ...core.inject.targets import is_linear
from ...core.layers.recognise import base_weight
from ...errors import ConfigError

PUBLIC = ("KappaTuneSelector", "find_kappa_target_modules")
_EXPERTS = (".gate_up_proj", ".down_proj", ".gate_proj", ".up_proj")


def find_kappa_target_modules(
    model: nn.Module,
    top_p: float = 0.2,
    max_dim_size_to_analyze: int = 16384,
    moe_param_suffixes: tuple[str, ...] | None = None,
    show_progress: bool = True,
) -> dict[str, list[str] | None]:
    """The share of a model's linear layers, and of its stacked experts, that is conditioned best.

    Args:
        model: the base.
        top_p: which share of them, in (0, 1]; one at least.
        max_dim_size_to_analyze: larger matrices are left out.
        moe_param_suffixes: ends of the names of parameters (experts, out, in); those of the usual models if None.
        show_progress: draw a bar; there is a decomposition for each matrix.

    Returns:
        `target_modules` and `target_parameters` (None without experts) for a config, best first.

    Raises:
        ConfigError: `top_p` is no share.
    """
    chooser = KappaTuneSelector(model, max_dim_size_to_analyze, moe_param_suffixes, show_progress)
    return {"target_modules": chooser.get_best_targets(top_p),
            "target_parameters": chooser.get_best_target_parameters(top_p) or None}  # fmt: skip


class KappaTuneSelector:
    """The same for several choices from one measurement.

    Args:
        model: the base.
        max_dim_size_to_analyze: larger matrices are left out.
        moe_param_suffixes: ends of the names of parameters (experts, out, in); those of the usual models if None.
        show_progress: draw a bar; there is a decomposition for each matrix.
    """

    def __init__(
        self,
        model: nn.Module,
        max_dim_size_to_analyze: int = 16384,
        moe_param_suffixes: tuple[str, ...] | None = None,
        show_progress: bool = True,
    ) -> None:
        self.model, self.largest, self.show_progress = model, max_dim_size_to_analyze, show_progress
        self.ends = _EXPERTS if moe_param_suffixes is None else tuple(moe_param_suffixes)

    def get_best_targets(
        self, top_p: float | None = None, num_modules: int | None = None, threshold: float | None = None
    ) -> list[str]:
        """Linear layers, best first; `num_modules` goes before `top_p`, and that before `threshold`.

        Args:
            top_p: which share of them; one at least.
            num_modules: how many.
            threshold: those whose condition number is at most this.
        """
        return _first(self._conditions[0], top_p, num_modules, threshold)

    def get_best_target_parameters(
        self, top_p: float | None = None, num_modules: int | None = None, threshold: float | None = None
    ) -> list[str]:
        """As `get_best_targets`, of stacked experts.

        Args:
            top_p: which share of them.
            num_modules: how many.
            threshold: the largest mean condition number.
        """
        return _first(self._conditions[1], top_p, num_modules, threshold)

    @functools.cached_property
    def _conditions(self) -> tuple[dict[str, float], dict[str, float]]:
        from tqdm import tqdm  # type: ignore[import-untyped]

        layers = {s.name: s.module for s in slots(self.model) if is_linear(s.module)}
        experts = {n: p for n, p in self.model.named_parameters() if p.dim() == 3 and n.endswith(self.ends)}
        found: tuple[dict[str, float], dict[str, float]] = {}, {}
        for name in tqdm([*layers, *experts], desc="condition numbers", disable=not self.show_progress):
            weight = experts[name] if name in experts else base_weight(layers[name]).read()[0]
            if max(weight.shape[-2:]) <= self.largest:
                found[name in experts][name] = condition(weight)
        return found


def _first(found: dict[str, float], share: float | None, count: int | None, most: float | None) -> list[str]:
    if share is not None and not 0 < share <= 1:
        raise ConfigError("no share", where="top_p", got=share, expected="in (0, 1]")
    if count is not None and count < 0:
        raise ConfigError("no number of modules", where="num_modules", got=count, expected="0 or more")
    order = sorted(found, key=found.__getitem__)
    if count is not None:
        return order[:count]
    if share is not None:
        return order[: max(1, int(len(order) * share))]
    return order if most is None else [n for n in order if found[n] <= most]


def condition(weight: Tensor) -> float:
    """κ of a matrix; of several (experts, out, in) the mean."""
    sizes = torch.linalg.svdvals(weight.detach().float())
    return float((sizes[..., 0] / (sizes[..., -1] + 1e-8)).mean())
