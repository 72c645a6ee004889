"""IA³: one trained factor for every output (keys, values) or input (feed-forward) of a layer.

    y = l ∘ (W x + b),   or on feed-forward layers  y = W (l ∘ x) + b

Liu et al. 2022, arXiv 2205.05638. Trainable: out (or in) a layer. Mergeable. Layers: Linear, Conv1D, Conv1d/2d/3d
(grouped too), Embedding (outputs only).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.combine.offer import Vectors
from ...core.config import LayerConfig, register
from ...core.hosts.adapter import Activation, Site
from ...core.hosts.view import View
from ...core.inject.patterns import name_in
from ...errors import ConfigError

_DEFAULTS: Mapping[str, tuple[list[str], list[str]]] = MappingProxyType(
    {
        "t5": (["k", "v"], ["wo"]),
        "mt5": (["k", "v", "wi_1"], []),
        "gpt2": (["c_attn"], ["mlp.c_proj"]),
        "gpt_bigcode": (["c_attn"], ["mlp.c_proj"]),
        "bloom": (["query_key_value"], ["mlp.dense_4h_to_h"]),
        **{n: (["key", "value"], ["output.dense"]) for n in ("bert", "roberta")},
        "deberta-v2": (["key_proj", "value_proj"], ["output.dense"]),
        "deberta": (["in_proj"], ["output.dense"]),
        "opt": (["q_proj", "k_proj"], ["fc2"]),
        "gptj": (["q_proj", "v_proj"], ["fc_out"]),
        "gpt_neo": (["q_proj", "v_proj"], ["c_proj"]),
        "bart": (["q_proj", "v_proj"], ["fc2"]),
        "phi": (["q_proj", "v_proj"], ["fc2"]),
        **{
            n: (["query_key_value"], ["dense_4h_to_h"]) for n in ("gpt_neox", "RefinedWebModel", "RefinedWeb", "falcon")
        },
        **{n: (["k_proj", "v_proj"], ["down_proj"]) for n in ("llama", "mistral")},
        "mixtral": (["k_proj", "v_proj"], ["w2"]),
        **{
            n: (["q_proj", "v_proj"], ["down_proj"])
            for n in ("llama4", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3")
        },
    }
)


@dataclass(kw_only=True)
class IA3Config(LayerConfig):
    """Configuration of IA³; fields as in the reference.

    Attributes:
        feedforward_modules: the targets that are scaled at their inputs, not at their outputs; known names by default.
        init_ia3_weights: start at 1, without changing the outputs; False starts at random.
    """

    feedforward_modules: list[str] | str | None = None
    known_feedforward: list[str] | None = field(default=None, init=False, repr=False, metadata={"runtime": True})
    fan_in_fan_out: bool = False
    init_ia3_weights: bool = True

    default_learning_rate: ClassVar[float] = 5e-3
    rate_exponent: ClassVar[float] = 0.65
    lists_of_modules: ClassVar[tuple[str, ...]] = ("feedforward_modules",)
    default_targets: ClassVar[Mapping[str, list[str] | str]] = MappingProxyType(
        {k: a + b for k, (a, b) in _DEFAULTS.items()}
    )
    default_feedforward: ClassVar[Mapping[str, list[str]]] = MappingProxyType({k: b for k, (_, b) in _DEFAULTS.items()})

    def __post_init__(self) -> None:
        super().__post_init__()
        targets, forward = self.target_modules, self.feedforward_modules
        if isinstance(targets, list) and isinstance(forward, list) and not set(forward) <= set(targets):
            raise ConfigError("must be among target_modules", where="feedforward_modules",
                              got=sorted(set(forward) - set(targets)))  # fmt: skip


@register("IA3", IA3Config)
class IA3(Activation, Vectors):
    """`ia3_l`: (out, 1) or (1, in); for convolutions (1, channels, *ones)."""

    steady: ClassVar[bool] = True
    prefix = "ia3_"
    kinds = frozenset({"linear", "conv", "embedding"})

    def __init__(self, site: Site, config: IA3Config) -> None:
        super().__init__(site, config)
        base = site.base
        at_input = config.feedforward_modules if config.feedforward_modules is not None else config.known_feedforward
        if at_input is None and config.target_modules is not None:
            every = {m for _, names in _DEFAULTS.values() for m in names}
            at_input = (
                [t for t in config.target_modules if t in every] if isinstance(config.target_modules, list) else []
            )
        self.is_feedforward = base.kind != "embedding" and name_in(site.name, at_input or [], "feedforward_modules")
        size = base.in_features * base.groups if self.is_feedforward else base.out_features
        if base.kind == "conv":
            shape: tuple[int, ...] = (1, size, *(1 for _ in base.shape[2:]))
        else:
            shape = (1, size) if self.is_feedforward else (size, 1)
        self.ia3_l = site.full(1.0, *shape) if config.init_ia3_weights else site.normal(1.0, *shape)
        self.is_conv = base.kind == "conv"

    @classmethod
    def check_model(cls, model: nn.Module, config: IA3Config) -> None:
        """Take what the architecture scales at its inputs where the config does not say."""
        config.known_feedforward = config.default_feedforward.get(
            getattr(getattr(model, "config", None), "model_type", None)  # type: ignore[arg-type]
        )

    @classmethod
    def combined_config(cls, configs: Sequence[IA3Config]) -> IA3Config:
        targets, at_input = _joined(c.target_modules for c in configs), _joined(c.feedforward_modules for c in configs)
        return replace(configs[0], target_modules=targets, feedforward_modules=at_input)

    def cut_dims(self) -> Mapping[str, tuple[int | None, int | None]]:
        return {"ia3_l": (None, 1) if self.is_feedforward else (0, None)}

    def forward(self, inner: View, x: Any) -> Any:
        factor = self.ia3_l if self.is_conv else self.ia3_l.flatten()
        return inner(x * factor) if self.is_feedforward else inner(x) * factor

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        factor = self.ia3_l.flatten()
        if not self.is_feedforward:
            return weight * factor.view(-1, *(1 for _ in weight.shape[1:])), None if bias is None else bias * factor
        # A group's outputs see that group's inputs only.
        groups = factor.numel() // weight.shape[1]
        per_output = factor.view(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1).reshape(len(weight), -1)
        return weight * per_output.view(*per_output.shape, *(1 for _ in weight.shape[2:])), bias


def _joined(wanted: Iterable[list[str] | str | None]) -> list[str] | str | None:
    """What any of several lists of names, or of several patterns, means.

    Raises:
        ConfigError: lists and patterns are mixed.
    """
    every = list(dict.fromkeys(w if isinstance(w, str) or w is None else tuple(w) for w in wanted))
    if all(isinstance(w, tuple) for w in every):
        return list(dict.fromkeys(n for w in every for n in w or ()))
    if all(isinstance(w, str) for w in every):
        return "|".join(f"({w})" for w in every)
    if every == [None]:
        return None
    raise ConfigError("lists and patterns cannot be joined", where="target_modules", got=every)
