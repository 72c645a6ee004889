"""The configuration of LoRA and of its variants; `lora.py` has the mathematics."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from ...core.config import LayerConfig, bounded, extension
from ...core.inject.patterns import value_for
from ...errors import ConfigError
from .. import starts
from ..initialisers.corda import CordaConfig
from ..initialisers.eva_ranks import EvaConfig
from ..initialisers.loftq import LoftQConfig
from ..initialisers.lora_ga import LoraGAConfig
from ..selective.trainable_tokens import TrainableTokensConfig
from .lora_options import (
    ArrowConfig,
    BdLoraConfig,
    KasaConfig,
    MontecloraConfig,
    VeloraConfig,
    check_plain_start,
    runtime_config,
)


@dataclass(kw_only=True)
class LoraConfig(LayerConfig):
    """Configuration of LoRA; fields as in the reference.

    Attributes:
        lora_alpha: alpha.
        lora_dropout: dropout on the layer's input.
        use_rslora: s = alpha / sqrt(r), not alpha / r.
        init_lora_weights: True: A Kaiming-uniform, B zero; False: both at random; or the name of a start: "gaussian",
            "orthogonal", "pissa", "pissa_niter_N", "olora", "mica", "loftq", and from data "eva", "corda", "lora_ga".
        use_dora: train the lengths of the weight's rows by themselves (DoRA).
        lora_bias: train a bias on B.
        target_parameters: names or ends of paths of plain parameters to adapt, such as stacked experts.
        loftq_config: settings of the start "loftq": a `LoftQConfig`.
        eva_config: settings of the start "eva".
        corda_config: settings of the start "corda".
        lora_ga_config: settings of the start "lora_ga".
        use_bdlora: if given, a factor is block-diagonal (BD-LoRA).
        kasa_config: if given, the smallest singular components are learnt anew (KaSA).
        monteclora_config: if given, A is drawn from a learnt mixture (MonteCLoRA).
        velora_config: if given, inputs are kept in compressed form for the backward pass (VeLoRA).
        arrow_config: if given, the adapter routes among others (Arrow); see `create_arrow_model`.
        alora_invocation_tokens: if given, the adapter acts only from these token ids' last occurrence on (aLoRA).
        use_qalora: one column of A for each group of inputs (QA-LoRA).
        qalora_group_size: inputs of such a group.
        trainable_token_indices: token ids whose embeddings train along; or name of the embedding -> ids.
        ensure_weight_tying: give an output head that shares the adapted embedding's weight the same update.
        layer_replication: (from, to) pairs of layers; the model is given the layers of all these ranges, in this order,
            and those that stand twice share their base.
        megatron_config: null; Megatron's layers are not adapted.
        megatron_core: kept as it is read.
        runtime_config: what does not belong to the file: a `LoraRuntimeConfig`.
    """

    r: int = bounded(8, ge=1, le=2**20)
    lora_alpha: int | float = bounded(8, gt=0, le=1e9)
    lora_dropout: float = bounded(0.0, ge=0, lt=1)
    fan_in_fan_out: bool = False
    bias: str = "none"
    use_rslora: bool = False
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"bounds": {"ge": 1}})
    alpha_pattern: dict[str, int | float] = field(default_factory=dict, metadata={"bounds": {"gt": 0}})
    use_dora: bool = False
    lora_bias: bool = False
    target_parameters: list[str] | None = None
    loftq_config: dict[str, Any] = field(default_factory=dict)
    eva_config: EvaConfig | None = None
    corda_config: CordaConfig | None = None
    lora_ga_config: LoraGAConfig | None = None
    use_bdlora: BdLoraConfig | None = None
    kasa_config: KasaConfig | None = None
    monteclora_config: MontecloraConfig | None = None
    velora_config: VeloraConfig | None = None
    arrow_config: ArrowConfig | None = None
    alora_invocation_tokens: list[int] | None = None
    use_qalora: bool = False
    qalora_group_size: int = bounded(16, ge=1)
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    ensure_weight_tying: bool = False
    megatron_config: dict[str, Any] | None = extension()
    megatron_core: str | None = extension("megatron.core")
    layer_replication: list[Any] | None = None
    runtime_config: Any = field(default=None, metadata={"runtime": True})
    default_learning_rate: ClassVar[float] = 5e-4
    rate_exponent: ClassVar[float] = 0.3

    needs: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "qalora_group_size": ("use_qalora", True),
        "eva_config": ("init_lora_weights", "eva"),
        "corda_config": ("init_lora_weights", "corda"),
        "lora_ga_config": ("init_lora_weights", "lora_ga"),
        "loftq_config": ("init_lora_weights", "loftq"),
    }

    def __post_init__(self) -> None:
        if isinstance(self.loftq_config, LoftQConfig):
            self.loftq_config = asdict(self.loftq_config)
        self.runtime_config = runtime_config(self.runtime_config)
        super().__post_init__()
        if self.bias not in ("none", "all", "lora_only"):
            raise ConfigError("unknown choice", where="bias", got=self.bias, expected="none, all or lora_only")
        if self.lora_bias and self.use_dora:
            raise ConfigError("it cannot be combined with use_dora", where="lora_bias", got=True)
        if self.megatron_config is not None:
            raise ConfigError("layers of Megatron are not adapted here", where="megatron_config",
                              got=str(self.megatron_config)[:80])  # fmt: skip
        self.init_lora_weights = starts.spelled_out(self.init_lora_weights)
        starts.check_name(self.init_lora_weights)
        if self.alora_invocation_tokens == []:
            raise ConfigError("no tokens", where="alora_invocation_tokens", got=[], expected="token ids, or null")
        for option in ("use_bdlora", "kasa_config", "use_qalora"):
            if getattr(self, option):
                check_plain_start(self.init_lora_weights, option)

    def idle(self, model: Any, paths: Sequence[str]) -> Iterable[str]:
        if self.use_bdlora is None:
            return []
        there = "".join(f".{path}." for path in paths)
        lists = {n: getattr(self.use_bdlora, n) or [] for n in ("target_modules_bd_a", "target_modules_bd_b")}
        return [f"use_bdlora.{n}: {part!r}" for n, parts in lists.items() for part in parts if f".{part}." not in there]

    def companions(self) -> list[LayerConfig]:
        wanted = self.trainable_token_indices
        by_layer = wanted if isinstance(wanted, dict) else {"": wanted} if wanted else {}
        return [TrainableTokensConfig(token_indices=ids, target_modules=[layer] if layer else None,
                                      disk_folder="token_adapter.") for layer, ids in by_layer.items()]  # fmt: skip

    def rank_at(self, name: str | Sequence[str]) -> int:
        """The rank at the module `name` (or at what has one of these names), by `rank_pattern`."""
        return int(value_for(name, self.rank_pattern, self.r))

    def scaling_at(self, name: str | Sequence[str]) -> float:
        """alpha / r (or alpha / sqrt r) at the module `name`, by `alpha_pattern` and `rank_pattern`."""
        alpha, rank = value_for(name, self.alpha_pattern, self.lora_alpha, "alpha_pattern"), self.rank_at(name)
        return float(alpha) / (math.sqrt(rank) if self.use_rslora else rank)


COUNTED_TWICE = (0, 21, 2)
"""The last release of the format whose files count the update of attention's output projection twice; what comes after
counts it once, and so do its files."""


def counts_once(version: str | None) -> bool:
    """Whether files of this release of the format count the update of attention's output projection once."""
    numbers = tuple(int(n) for n in re.findall(r"\d+", version or "")[:3])
    return numbers > COUNTED_TWICE
