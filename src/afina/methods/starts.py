"""How LoRA's `init_lora_weights` chooses a start."""

from __future__ import annotations

from typing import Any

from ..core.hosts.adapter import Site
from ..errors import CheckpointError, ConfigError, did_you_mean

_SUBTRACTING = ("pissa", "olora", "corda", "lora_ga")
_ANY_CASE = frozenset({"olora", "gaussian", "mica"})
"""Those that the reference takes in any case."""
_PLAIN = ("gaussian", "orthogonal", "eva", "loftq", "mica")


def spelled_out(name: bool | str) -> bool | str:
    """The start under the one name that it has here."""
    return name.lower() if isinstance(name, str) and name.lower() in _ANY_CASE else name


def check_name(name: bool | str) -> None:
    """Refuse an unknown start.

    Raises:
        ConfigError: names the nearest.
    """
    known = (*_SUBTRACTING, *_PLAIN)
    if isinstance(name, bool) or name in known or (name.startswith("pissa_niter_") and name[12:].isdecimal()):
        return
    raise ConfigError("unknown start", where="init_lora_weights", got=name,
                      expected="true, false, pissa_niter_N or " + ", ".join(known),
                      fix=did_you_mean(name, known))  # fmt: skip


def subtracts(name: bool | str) -> bool:
    """Whether the paper subtracts the start from W, so that it is kept as a frozen pair."""
    return isinstance(name, str) and (name in _SUBTRACTING or name.startswith("pissa_niter_"))


def refuse_without_start(name: bool | str, where: str) -> None:
    """Refuse a file of the reference that lacks the subtracted start, unless it follows from the base alone.

    Raises:
        CheckpointError: the start was drawn at random or from data, so that the base it left is lost.
    """
    if name not in ("pissa", "olora"):
        raise CheckpointError(
            f"the file lacks the start {name!r}, which cannot be computed again", where=where,
            fix="save it with peft's path_initial_model_for_weight_conversion",
        )  # fmt: skip


def freezes(name: bool | str) -> frozenset[str]:
    """The factors that the start's paper does not train."""
    return frozenset({"lora_B"}) if name == "mica" else frozenset()


def start(config: Any, site: Site, rank: int, scale: float) -> Any:
    """The start of one layer, or None for the default."""
    name = config.init_lora_weights
    if isinstance(name, bool) or name == "gaussian":
        return None
    from .initialisers import initialise

    weight = site.base.read()[0].detach().float()
    if weight.dim() != 2:
        raise ConfigError("this start is defined for matrices only", where=f"init_lora_weights at {site.name}",
                          got=name,
                          fix="leave the layer out with exclude_modules, or use init_lora_weights=true")  # fmt: skip
    return initialise(name, weight, rank, scale, config=config, statistics=site.statistics)
