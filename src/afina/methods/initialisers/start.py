"""What an initialiser of LoRA gives, and what all of them check.

Shape suffixes: O = out_features, I = in_features, R = rank, N = rows of data.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ...errors import ConfigError, did_you_mean

_C = TypeVar("_C")


class Start(NamedTuple):
    """The two factors at the start of training, float32 on the weight's device.

    Attributes:
        A_RI: the trainable A.
        B_OR: the trainable B.
        subtract: the layer computes with W - s·B0 A0 + s·B A, where (A0, B0) is a frozen copy of this start. The base
            weight itself is never rewritten.
    """

    A_RI: Tensor
    B_OR: Tensor
    subtract: bool


class Request(NamedTuple):
    """What a start is computed from.

    Attributes:
        weight_OI: the base weight, float32, dequantised.
        rank: r.
        scale: s, the factor before B A.
        config: the LoRA config.
        statistics: what was gathered for this layer by a data-driven start.
        name: the value of `init_lora_weights`.
    """

    weight_OI: Tensor
    rank: int
    scale: float
    config: Any
    statistics: Any
    name: str


def check_rank(weight_OI: Tensor, rank: int, *, needed: int | None = None) -> None:
    """Refuse a rank that the weight cannot fill.

    Args:
        needed: how many singular directions the start takes; the rank itself if None.

    Raises:
        ConfigError: more directions are needed than min(in, out).
    """
    limit, wanted = min(weight_OI.shape), rank if needed is None else needed
    if wanted > limit:
        raise ConfigError(
            "this start needs more singular directions than the weight has", where="r", got=rank,
            expected=f"at most {limit * rank // wanted} for a weight of shape {tuple(weight_OI.shape)}",
            fix="lower r, leave the layer out with exclude_modules, or use init_lora_weights=true",
        )  # fmt: skip


def check_finite(tensor: Tensor, what: str, where: str) -> None:
    """Refuse what no decomposition survives.

    Raises:
        ConfigError: a NaN or an infinity.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise ConfigError(f"{what} is not finite", where=where, fix="look for NaN or overflow in the model or the data")


def settings(cls: type[_C], value: Any) -> _C:
    """A sub-config given as an instance, as a mapping of its fields, or not at all.

    Raises:
        ConfigError: the mapping has a key that is no field.
    """
    if isinstance(value, cls):
        return value
    values: Mapping[str, Any] = value or {}
    known = list(inspect.signature(cls).parameters)
    for key in values:
        if key not in known:
            raise ConfigError("unknown key", where=f"{cls.__name__}.{key}", expected=", ".join(known),
                              fix=did_you_mean(key, known))  # fmt: skip
    return cls(**values)
