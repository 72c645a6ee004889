"""Which layers to adapt, by the condition number of their weights (KappaTune, arXiv 2506.16289).

κ(W) = σ_max / σ_min; the layers with the smallest κ are the least specialised, so training them forgets least.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.inject.targets import is_linear, slots
from ...core.layers.recognise import base_weight
from ...errors import ConfigError

PUBLIC = ("find_kappa_target_modules",)
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
    if not 0 < top_p <= 1:
        raise ConfigError("no share", where="top_p", got=top_p, expected="in (0, 1]")
    from tqdm import tqdm  # type: ignore[import-untyped]

    ends = _EXPERTS if moe_param_suffixes is None else tuple(moe_param_suffixes)
    layers = {s.name: s.module for s in slots(model) if is_linear(s.module)}
    experts = {n: p for n, p in model.named_parameters() if p.dim() == 3 and n.endswith(ends)}
    found: dict[str, float] = {}
    for name in tqdm([*layers, *experts], desc="condition numbers", disable=not show_progress):
        weight = experts[name] if name in experts else base_weight(layers[name]).read()[0]
        if max(weight.shape[-2:]) <= max_dim_size_to_analyze:
            found[name] = condition(weight)

    def best(names: dict[str, object]) -> list[str]:
        order = sorted((n for n in names if n in found), key=found.__getitem__)
        return order[: max(1, int(len(order) * top_p))]

    return {"target_modules": best(dict(layers)), "target_parameters": best(dict(experts)) or None}


def condition(weight: Tensor) -> float:
    """κ of a matrix; of several (experts, out, in) the mean."""
    sizes = torch.linalg.svdvals(weight.detach().float())
    return float((sizes[..., 0] / (sizes[..., -1] + 1e-8)).mean())
