"""More of what scripts import from `peft`'s inner modules: helpers around a Trainer, DeepSpeed, names and masks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..core.combine.task_vectors import agreeing, dropped, largest
from ..core.config import methods
from ..core.inject.architectures import DEFAULT_TARGETS
from ..core.inject.patterns import full_match, key_for
from ..errors import ConfigError

DUMMY_TARGET_MODULES = "dummy-target-modules"
DUMMY_MODEL_CONFIG = MappingProxyType({"model_type": "custom"})
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
MIN_EXPECTED_CONFIG_KEYS = frozenset({"peft_type"})
MIN_TARGET_MODULES_FOR_OPTIMIZATION = 20
ALLOWED_COMPUTE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
UPCAST_DTYPES = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")


class MontecloraTrainerMixin:
    """Nothing to add: MonteCLoRA's penalty is in the loss that the model returns."""


def check_deepspeed_zero3_enabled() -> bool:
    """Whether DeepSpeed's ZeRO stage 3 splits parameters over processes."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    return bool(is_deepspeed_zero3_enabled())


@contextlib.contextmanager
def gather_params_ctx(param: Any, modifier_rank: int | None = 0, fwd_module: nn.Module | None = None) -> Iterator[None]:
    """Whole parameters inside the context where ZeRO-3 splits them; elsewhere they are whole."""
    if not check_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(param, modifier_rank=modifier_rank, fwd_module=fwd_module):
        yield


def dequantize_bnb_weight(weight: nn.Parameter, state: Any = None) -> Tensor:
    """The numbers that a weight of bitsandbytes stands for; any other weight as it is.

    Raises:
        ConfigError: an int8 weight alone, whose scales its layer has.
    """
    kind = type(weight).__name__
    if kind == "Params4bit":
        import bitsandbytes

        return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)  # type: ignore[attr-defined, no-any-return]
    if kind != "Int8Params":
        return weight
    if state is None:
        raise ConfigError("an int8 weight needs its layer's state", where="state", fix="give layer.state, or use "
                          "dequantize_module_weight(layer)")  # fmt: skip
    import bitsandbytes

    scales = state.SCB if state.SCB is not None else vars(weight)["SCB"]
    found: Tensor = bitsandbytes.functional.int8_vectorwise_dequant(weight.data, scales)
    return found


def match_target_against_key(target_pattern: str, key: str) -> Any:
    """The match of a pattern with a module's whole name, or None."""
    return full_match(target_pattern, key, "target_modules")


def get_pattern_key(pattern_keys: Sequence[str], key_to_match: str) -> str:
    """The first of the patterns that matches a module's name, or the end of it; the name itself if none does."""
    found = key_for((key_to_match,), dict.fromkeys(pattern_keys), "pattern_keys")
    return key_to_match if found is None else found


def str_to_bool(value: str) -> int:
    """1 for "yes", "true", "on", ..., 0 for their opposites.

    Raises:
        ConfigError: it is neither.
    """
    word = value.lower()
    if word in ("y", "yes", "t", "true", "on", "1"):
        return 1
    if word in ("n", "no", "f", "false", "off", "0"):
        return 0
    raise ConfigError("neither yes nor no", where="value", got=value, expected="true or false")


def magnitude_based_pruning(tensor: Tensor, density: float) -> Tensor:
    """The share `density` of a tensor's elements that is largest in size, zero elsewhere."""
    return largest(tensor, density)


def random_pruning(tensor: Tensor, density: float, rescale: bool) -> Tensor:
    """Each element with the probability `density`, zero elsewhere; divided by it if `rescale`."""
    return dropped(tensor, density) if rescale else dropped(tensor, density) * density


def prune(tensor: Tensor, density: float, method: str, rescale: bool = False) -> Tensor:
    """As `magnitude_based_pruning` ("magnitude") or `random_pruning` ("random").

    Raises:
        ConfigError: another method.
    """
    if method not in ("magnitude", "random"):
        raise ConfigError("not an option", where="method", got=method, expected="magnitude or random")
    return largest(tensor, density) if method == "magnitude" else random_pruning(tensor, density, rescale)


def reshape_weight_task_tensors(task_tensors: Tensor, weights: Tensor) -> Tensor:
    """One weight for each tensor, in a shape that multiplies them: (tensors, 1, ...)."""
    return weights.view(-1, *(1 for _ in task_tensors.shape[weights.dim() :]))


def calculate_majority_sign_mask(tensor: Tensor, method: str = "total") -> Tensor:
    """Where each of the tensors (tensors, ...) has the sign of their sum, or ("frequency") of most of them."""
    if method not in ("total", "frequency"):
        raise ConfigError("not an option", where="method", got=method, expected="total or frequency")
    return agreeing(tensor, method)


def disjoint_merge(task_tensors: Tensor, majority_sign_mask: Tensor) -> Tensor:
    """The mean, element by element, of the tensors where the mask holds."""
    return (task_tensors * majority_sign_mask).sum(0) / majority_sign_mask.sum(0).clamp(min=1.0)


def is_torchao_ge_v0_18_0() -> bool:
    """Whether torchao is installed, in a version from 0.18 on."""
    import importlib.metadata

    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return tuple(map(int, importlib.metadata.version("torchao").split("+")[0].split(".")[:2])) >= (0, 18)
    return False


def prefixes() -> dict[str, str]:
    """Method -> what its parameters' names begin with."""
    return {n: f"{n.lower()}_" if m.config.is_prompt_learning else getattr(m.implementation, "prefix", "")
            for n, m in methods().items()}  # fmt: skip


def default_targets(name: str) -> dict[str, Any] | None:
    """Of `TRANSFORMERS_MODELS_TO_<METHOD>_TARGET_MODULES_MAPPING`: what the method adapts on each kind of model when no
    targets are named; None for other names."""
    for peft_type, method in methods().items():
        spelled = {"LN_TUNING": "LNTUNING"}.get(peft_type, peft_type)
        if name == f"TRANSFORMERS_MODELS_TO_{spelled}_TARGET_MODULES_MAPPING":
            return {**DEFAULT_TARGETS, **getattr(method.config, "default_targets", {})}
        if name == f"TRANSFORMERS_MODELS_TO_{spelled}_FEEDFORWARD_MODULES_MAPPING":
            return dict(getattr(method.config, "default_feedforward", {}))
    return None
