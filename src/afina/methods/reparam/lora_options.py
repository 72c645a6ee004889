"""Settings of LoRA's variants, under the reference's names; the files named after the variants have the mathematics."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from ...core.config import bounded
from ...core.validate import validate_fields
from ...errors import AfinaWarning, ConfigError

PUBLIC = ("ArrowConfig", "BdLoraConfig", "KasaConfig", "LoraRuntimeConfig", "MontecloraConfig", "VeloraConfig")


@dataclass
class _Options:
    def __post_init__(self) -> None:
        validate_fields(self)


@dataclass
class ArrowConfig(_Options):
    """Settings of Arrow.

    Attributes:
        top_k: experts that count at each token.
        router_temperature: of the softmax over their similarities.
        use_gks: subtract the mean of the general adapters from every expert (GenKnowSub).
        task_adapter_names: the experts; set by `create_arrow_model`.
        gks_adapter_names: the general adapters; set by `create_arrow_model`.
        rng_seed: kept for the reference's files; nothing here is random.
    """

    top_k: int = bounded(3, ge=1)
    router_temperature: float = bounded(1.0, gt=0)
    use_gks: bool = False
    task_adapter_names: list[str] | None = None
    gks_adapter_names: list[str] | None = None
    rng_seed: int | None = None


@dataclass
class BdLoraConfig(_Options):
    """Settings of BD-LoRA.

    Attributes:
        target_modules_bd_a: modules whose A is block-diagonal, by any dotted part of their path.
        target_modules_bd_b: modules whose B is.
        nblocks: blocks of such a matrix.
        match_strict: refuse a target that neither list names, instead of giving it plain LoRA.
    """

    target_modules_bd_a: list[str] | None = None
    target_modules_bd_b: list[str] | None = None
    nblocks: int = bounded(1, ge=1)
    match_strict: bool = True


@dataclass
class KasaConfig(_Options):
    """Settings of KaSA.

    Attributes:
        beta: weight of the penalty on the trained singular values (equation 9 of the paper).
        gamma: weight of the penalty that keeps the factors orthonormal (equation 11).
    """

    beta: float = bounded(1e-4, ge=0)
    gamma: float = bounded(1e-3, ge=0)


@dataclass
class LoraRuntimeConfig(_Options):
    """Settings of a process, which are not saved.

    Attributes:
        ephemeral_gpu_offload: the reference moves offloaded layers to the GPU for DoRA's start; no effect here, where
            they are read where they lie.
    """

    ephemeral_gpu_offload: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ephemeral_gpu_offload:
            warnings.warn("ephemeral_gpu_offload has no effect: layers are read where they lie", AfinaWarning, 4)


def runtime_config(given: LoraRuntimeConfig | Mapping[str, Any] | None) -> LoraRuntimeConfig:
    """The settings of a process as a file or a caller gives them; unknown ones are told and left out.

    Raises:
        ConfigError: neither of both.
    """
    if isinstance(given, LoraRuntimeConfig):
        return given
    if not isinstance(given, Mapping | None):
        raise ConfigError("wrong type", where="runtime_config", got=str(given)[:80],
                          expected="a LoraRuntimeConfig or its fields")  # fmt: skip
    values, known = dict(given or {}), {f.name for f in fields(LoraRuntimeConfig)}
    if unknown := sorted(values.keys() - known):
        warnings.warn(f"runtime_config: {', '.join(unknown)[:80]} is not known here and has no effect", AfinaWarning, 4)
    return LoraRuntimeConfig(**{k: v for k, v in values.items() if k in known})


@dataclass
class MontecloraConfig(_Options):
    """Settings of MonteCLoRA.

    Attributes:
        num_samples: components of the mixture.
        use_entropy: penalise mixtures in which one component has all the weight.
        dirichlet_prior: the concentration that the mixture's weights are drawn to.
        sample_scaler: size of the noise on A.
        kl_loss_weight: weight of the divergences from the priors in the loss.
        buffer_size: kept for the reference's files; numbers are drawn when they are needed.
    """

    num_samples: int = bounded(8, ge=1)
    use_entropy: bool = False
    dirichlet_prior: float = bounded(0.1, gt=0)
    sample_scaler: float = bounded(1e-4, ge=0)
    kl_loss_weight: float = bounded(1e-5, ge=0)
    buffer_size: int = bounded(150, ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buffer_size != 150:
            warnings.warn("buffer_size: without effect: numbers are drawn when they are needed", AfinaWarning, 4)


@dataclass
class VeloraConfig(_Options):
    """Settings of VeLoRA.

    Attributes:
        num_groups: sub-tokens that an input is cut into; each is kept as one number.
        scale: factor of the reconstructed input in the backward pass.
        init_type: the direction that is kept: the mean sub-token of each batch, of the first batch, or a random one.
    """

    num_groups: int = bounded(64, ge=1)
    scale: float = 1.0
    init_type: Literal["batch_average", "batch_average_once", "random"] = "batch_average"


def check_plain_start(start: bool | str, option: str) -> None:
    """Refuse a start that is made for LoRA's own two factors.

    Raises:
        ConfigError: names the option that it cannot be combined with.
    """
    if not isinstance(start, bool) and start != "gaussian":
        raise ConfigError(f"it cannot be combined with {option}", where="init_lora_weights", got=start,
                          expected="true, false or gaussian")  # fmt: skip
