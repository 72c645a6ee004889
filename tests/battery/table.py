"""Every method and variant, one row each: what it promises. The battery holds it to that.

A new method adds one row. A check that cannot hold for a row is listed in `gaps` with its reason; nothing is skipped
otherwise, and a kind of layer that a row does not list must be refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from afina.methods.reparam.lokr import split

from .kinds import KINDS, Kind, Layer

MATRICES = ("linear", "linear_without_bias", "transposed_linear")
CONVOLUTIONS = ("conv1d", "dilated_conv1d", "conv2d", "padded_conv2d", "conv3d", "grouped_conv2d")
EMBEDDINGS = ("embedding", "scaled_embedding")
ATTENTIONS = ("attention", "attention_batch_first", "attention_without_bias", "encoder_layer")
PARAMETERS = ("parameter", "experts", "transposed_experts")


@dataclass(frozen=True)
class Row:
    """One method or variant.

    Attributes:
        name: unique, e.g. "lora-rslora".
        config: the config class's name in `afina`.
        kinds: the names of the toy models that it can adapt; all others must be refused.
        count: trainable parameters of a toy model, by the paper's formula.
        options: keyword arguments of the config.
        starts_at_base: whether an untrained adapter changes nothing.
        merges: whether it has a merged form.
        oracle: the config class's name in the reference, or None where it has no such method.
        oracle_options: keyword arguments that only the reference's class takes.
        open: leaves kinds open: they are neither promised nor refused (a variant whose options matter to few kinds).
        inputs: what the method takes in forward besides the model's own inputs, for the toy models' batches of three.
        gaps: (check, kind or "") -> why the check does not apply there.
    """

    name: str
    config: str
    kinds: tuple[str, ...]
    count: Callable[[Kind], int]
    options: Mapping[str, Any] = field(default_factory=dict)
    starts_at_base: bool = True
    merges: bool = True
    oracle: str | None = None
    oracle_options: Mapping[str, Any] = field(default_factory=dict)
    open: bool = False
    inputs: Mapping[str, Any] = field(default_factory=dict)
    gaps: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def method(self) -> str:
        """The name without the variant."""
        return self.name.partition("-")[0]

    def gap(self, check: str, kind: Kind) -> str | None:
        """Why a check does not apply, or None if it does."""
        if check == "merged" and not self.merges:
            return "the row has no merged form"
        if check == "oracle" and self.oracle is None:
            return "the reference has no such method"
        return self.gaps.get((check, kind.name)) or self.gaps.get((check, ""))

    def arguments(self, kind: Kind) -> dict[str, Any]:
        """The config's keyword arguments for a toy model."""
        return {**kind.targets, **self.options}


# -- formulas ---------------------------------------------------------------------------------------------------------


def lora_count(
    rank: int = 4, *, ranks: tuple[int, ...] = (), dora: bool = False, bias: bool = False
) -> Callable[[Kind], int]:
    """r · (in · kernel + out / groups) a layer and expert; DoRA and LoRA's own bias add out each."""

    def count(kind: Kind) -> int:
        each = [*ranks, *(rank for _ in kind.layers)]
        return sum(
            r * layer.experts * (layer.width * layer.kernel + layer.out // layer.groups)
            + layer.out * (layer.experts * dora + bias)
            for r, layer in zip(each, kind.layers, strict=False)
        )

    return count


def each(size: Callable[[Layer], int]) -> Callable[[Kind], int]:
    """The sum of a formula over all adapted layers."""
    return lambda kind: sum(size(layer) for layer in kind.layers)


def plus(count: Callable[[Kind], int], extra: Callable[[Kind], int]) -> Callable[[Kind], int]:
    """The sum of two formulas."""
    return lambda kind: count(kind) + extra(kind)


def adapted_biases(kind: Kind) -> int:
    """Biases of the adapted layers, as far as they are called so (attention's `in_proj_bias` is not)."""
    names = [n for n, _ in kind.build().named_parameters() if n.endswith("in_proj_bias")]
    return sum(layer.bias for layer in kind.layers) - 48 * len(names)


def all_biases(kind: Kind) -> int:
    """Biases of the whole model."""
    return sum(p.numel() for n, p in kind.build().named_parameters() if n.endswith(".bias"))


def head_size(kind: Kind) -> int:
    """Parameters of the head."""
    return sum(p.numel() for n, p in kind.build().named_parameters() if n.startswith("head."))


# -- rows -------------------------------------------------------------------------------------------------------------

_EVERY = (*MATRICES, *CONVOLUTIONS, *EMBEDDINGS, *ATTENTIONS, *PARAMETERS)
_GROUPED = {("merge", "grouped_conv2d"): "each output sees every input channel, which no grouped weight can hold"}


def _lora(
    name: str,
    kinds: tuple[str, ...] = _EVERY,
    count: Callable[[Kind], int] | None = None,
    *,
    starts_at_base: bool = True,
    open: bool = False,
    gaps: Mapping[tuple[str, str], str] | None = None,
    **options: Any,
) -> Row:
    return Row(
        name,
        "LoraConfig",
        kinds,
        count or lora_count(),
        {"r": 4, "lora_alpha": 6, **options},
        starts_at_base=starts_at_base,
        oracle="LoraConfig",
        open=open,
        gaps={**_GROUPED, **(gaps or {})},
    )


_GROUPED_DORA = {
    ("stack", "grouped_conv2d"): "the second one needs the merged weight of the first, which has no grouped form",
    **{("oracle", kind): "the reference cannot adapt this kind of layer" for kind in (*ATTENTIONS, *PARAMETERS)},
}

_MATRIX_LIKE = (*MATRICES, *CONVOLUTIONS, *EMBEDDINGS, *ATTENTIONS)


def _inputs(layer: Layer) -> int:
    """Elements of one output's row of weights."""
    return layer.width // layer.groups * layer.kernel


def _randlora_size(layer: Layer) -> int:
    """ceil(narrow / 3) summands of 3 + narrow numbers."""
    narrow = min(layer.out, _inputs(layer))
    return -(-narrow // 3) * (3 + narrow)


_LINEARS = ("linear", "linear_without_bias")
"""Where the reference has a method for nn.Linear alone."""


def _beyond(kinds: tuple[str, ...], known: tuple[str, ...] = MATRICES) -> dict[tuple[str, str], str]:
    """Gaps for kinds of layer that the reference cannot adapt."""
    return {("oracle", k): "the reference cannot adapt this kind of layer" for k in kinds if k not in known}


def _method(
    name: str,
    config: str,
    size: Callable[[Layer], int],
    kinds: tuple[str, ...] = _MATRIX_LIKE,
    *,
    oracle_kinds: tuple[str, ...] = MATRICES,
    starts_at_base: bool = True,
    open: bool = False,
    gaps: Mapping[tuple[str, str], str] | None = None,
    **options: Any,
) -> Row:
    """A row whose parameters are counted layer by layer, and which the reference has for `oracle_kinds`."""
    return Row(name, config, kinds, each(size), options, starts_at_base=starts_at_base, open=open, oracle=config,
               gaps={**_beyond(kinds, oracle_kinds), **(gaps or {})})  # fmt: skip


_LOW_RANK = (
    _method("adalora", "AdaLoraConfig", lambda n: 6 * (_inputs(n) + n.out + 1), init_r=6, target_r=3, total_step=9,
            oracle_kinds=(*MATRICES, "conv2d", "padded_conv2d")),
    _method("adamss", "AdamssConfig", lambda n: 4 * 3 + n.out, r=3, num_subspaces=4, oracle_kinds=_LINEARS),
    _method("adamss-random-start", "AdamssConfig", lambda n: 3 * 3 + n.out, MATRICES, r=3, num_subspaces=3,
            init_weights=None, starts_at_base=False, open=True, oracle_kinds=_LINEARS),
    _method("pvera", "PveraConfig", lambda n: 8 + n.out, MATRICES, r=4),
    _method("fourierft", "FourierFTConfig", lambda n: 20, n_frequency=20, scaling=9.0, starts_at_base=False),
    _method("fourierft-zero-start", "FourierFTConfig", lambda n: 20, MATRICES, n_frequency=20, init_weights=True,
            open=True),
    _method("waveft", "WaveFTConfig", lambda n: 20, n_frequency=20, scaling=5.0),
    _method("waveft-db3", "WaveFTConfig", lambda n: 20, n_frequency=20, scaling=5.0, wavelet_family="db3"),
    _method("waveft-direct", "WaveFTConfig", lambda n: 20, MATRICES, n_frequency=20, use_idwt=False,
            init_weights=False, starts_at_base=False, scaling=100.0, open=True),
    Row("unilora", "UniLoraConfig", _MATRIX_LIKE, lambda kind: 20,
        {"r": 3, "theta_d_length": 20, "init_theta_d_bound": 2.0}, starts_at_base=False, oracle="UniLoraConfig",
        gaps=_beyond(_MATRIX_LIKE)),
    Row("unilora-saved-indices", "UniLoraConfig", MATRICES, lambda kind: 20,
        {"r": 3, "theta_d_length": 20, "init_theta_d_bound": 2.0, "save_indices": True}, starts_at_base=False,
        oracle="UniLoraConfig", open=True),
    Row("vblora", "VBLoRAConfig", (*MATRICES, *CONVOLUTIONS, *ATTENTIONS),
        plus(each(lambda n: 6 * 4 * (_inputs(n) + n.out) // 2), lambda kind: 12),
        {"r": 4, "num_vectors": 6, "vector_length": 2, "init_vector_bank_bound": 1.0}, starts_at_base=False,
        oracle="VBLoRAConfig", gaps=_beyond((*CONVOLUTIONS, *ATTENTIONS))),
    _method("randlora", "RandLoraConfig", _randlora_size, r=3, randlora_alpha=1),
    _method("randlora-sparse", "RandLoraConfig", _randlora_size, MATRICES, r=3, randlora_alpha=1, sparse=True,
            open=True, save_projection=False),
    _method("randlora-very-sparse", "RandLoraConfig", _randlora_size, MATRICES, r=3, randlora_alpha=1,
            very_sparse=True, open=True),
    _method("c3a", "C3AConfig", lambda n: _inputs(n) * n.out // 2, (*MATRICES, *CONVOLUTIONS, *ATTENTIONS),
            block_size=2, starts_at_base=False, oracle_kinds=_LINEARS),
    _method("c3a-zero-start", "C3AConfig", lambda n: _inputs(n) * n.out // 2, MATRICES, block_size=2,
            init_weights=True, open=True, oracle_kinds=_LINEARS),
    _method("road", "RoadConfig", lambda n: n.out, group_size=2, oracle_kinds=_LINEARS),
    _method("road-2", "RoadConfig", lambda n: 2 * n.out, MATRICES, group_size=2, variant="road_2", open=True,
            oracle_kinds=_LINEARS),
    _method("road-4", "RoadConfig", lambda n: 4 * n.out, MATRICES, group_size=2, variant="road_4", open=True,
            oracle_kinds=_LINEARS),
    _method("shira", "ShiraConfig", lambda n: 2 * (_inputs(n) + n.out), r=2, random_seed=5, oracle_kinds=_LINEARS),
    _method("delora", "DeloraConfig", lambda n: 3 * (_inputs(n) + n.out) + 1, r=3, oracle_kinds=_LINEARS),
    _method("delora-random-start", "DeloraConfig", lambda n: 3 * (_inputs(n) + n.out) + 1, MATRICES, r=3,
            init_weights=False, starts_at_base=False, open=True, oracle_kinds=_LINEARS),
    _method("gralora", "GraloraConfig", lambda n: 4 * (_inputs(n) + n.out), (*MATRICES, *CONVOLUTIONS, *ATTENTIONS),
            r=4, alpha=8, oracle_kinds=MATRICES),
    _method("gralora-hybrid", "GraloraConfig", lambda n: 6 * (_inputs(n) + n.out), MATRICES, r=4, hybrid_r=2, alpha=8,
            open=True),
    _method("gralora-random-start", "GraloraConfig", lambda n: 6 * (_inputs(n) + n.out), MATRICES, r=4, hybrid_r=2,
            alpha=8, init_weights=False, starts_at_base=False, open=True),
    _method("glora", "GloraConfig", lambda n: 6 * (_inputs(n) + n.out) + (3 * (_inputs(n) + 1) + 2) * (n.bias > 0),
            (*MATRICES, *CONVOLUTIONS), r=3, oracle_kinds=_LINEARS),
    _method("glora-vectors", "GloraConfig", lambda n: 2 * n.out + (2 * n.out + _inputs(n)) * (n.bias > 0), MATRICES,
            config_A_B="vector", config_C="vector", config_D_E="vector", oracle_kinds=_LINEARS, open=True),
    _method("glora-weights-only", "GloraConfig", lambda n: 2, MATRICES, config_A_B="constant", config_C="none",
            config_D_E="none", oracle_kinds=_LINEARS, open=True),
    _method("miss", "MissConfig", lambda n: 3 * n.out, r=3, oracle_kinds=_LINEARS),
    _method("miss-mini", "MissConfig", lambda n: 6, MATRICES, r=3, mini_r=2, init_weights="mini",
            oracle_kinds=_LINEARS, open=True),
    _method("miss-bat", "MissConfig", lambda n: 2 * n.out, (*MATRICES, *CONVOLUTIONS, *ATTENTIONS), r=2,
            init_weights="bat", oracle_kinds=_LINEARS),
    _method("miss-random-start", "MissConfig", lambda n: 3 * n.out, MATRICES, r=3, init_weights=False,
            starts_at_base=False, oracle_kinds=_LINEARS, open=True),
    _method("psoft", "PsoftConfig", lambda n: 6 + 8, r=4, psoft_alpha=5, oracle_kinds=_LINEARS),
    _method("psoft-free", "PsoftConfig", lambda n: 16 + 4, MATRICES, r=4, psoft_orth=False, psoft_mag_a=False,
            ab_svd_init="pissa_init", oracle_kinds=_LINEARS, open=True),
    _method("psoft-neumann", "PsoftConfig", lambda n: 6 + 4, MATRICES, r=4, use_cayley_neumann=True,
            cayley_neumann_eps=0.3, psoft_mag_b=False, psoft_svd="lowrank", random_seed=3, oracle_kinds=_LINEARS,
            open=True),
    _method("tinylora", "TinyLoraConfig", lambda n: 5, r=2, u=5, oracle_kinds=(*MATRICES, "embedding")),
    _method("tinylora-from-seed", "TinyLoraConfig", lambda n: 5, MATRICES, r=2, u=5, save_projection=False, open=True),
    Row("tinylora-tied", "TinyLoraConfig", MATRICES, lambda kind: 5, {"r": 2, "u": 5, "weight_tying": 1.0},
        oracle="TinyLoraConfig", open=True),
    _method("vera", "VeraConfig", lambda n: 4 + n.out, r=4),
    _method("vera-from-seed", "VeraConfig", lambda n: 4 + n.out, r=4, save_projection=False, projection_prng_key=3),
)  # fmt: skip

_REFERENCE_MATRICES = ("linear", "linear_without_bias")
_REFERENCE_CONVOLUTIONS = ("conv2d", "padded_conv2d")


def _weights(layer: Layer) -> int:
    """Elements of a layer's weight."""
    return layer.out * _inputs(layer)


def _kronecker(layer: Layer) -> int:
    """LoKr's two whole factors."""
    (o1, o2), (i1, i2) = split(layer.out), split(layer.width // layer.groups)
    return o1 * i1 + o2 * i2 * layer.kernel


_SQUARE = {("oracle", k): "the reference takes every kernel for a square one" for k in ("padded_conv2d", "conv2d")}
_NO_ATTENTION = (*MATRICES, *CONVOLUTIONS, *EMBEDDINGS)
_VECTORS = (*MATRICES, *EMBEDDINGS)
_ONE_DIMENSIONAL = (*_REFERENCE_MATRICES, "conv1d", "dilated_conv1d", *_REFERENCE_CONVOLUTIONS, "grouped_conv2d")

_PRODUCTS = (
    _method("loha", "LoHaConfig", lambda n: 8 * (n.out + _inputs(n)), oracle_kinds=_ONE_DIMENSIONAL, r=4, alpha=6),
    _method("lokr", "LoKrConfig", _kronecker, oracle_kinds=_ONE_DIMENSIONAL, r=64, alpha=48),
    _method(
        "hira",
        "HiraConfig",
        lambda n: 4 * (n.out + _inputs(n)),
        r=4,
        oracle_kinds=(*MATRICES, "conv1d", "conv2d", "conv3d", "embedding"),
    ),
    _method(
        "hra",
        "HRAConfig",
        lambda n: 4 * _inputs(n),
        (*MATRICES, *CONVOLUTIONS, *ATTENTIONS),
        r=4,
        open=True,
        oracle_kinds=_REFERENCE_MATRICES,
        gaps=_SQUARE,
    ),
    _method("hra-embedding", "HRAConfig", lambda n: 4 * n.out, EMBEDDINGS, r=4, open=True, oracle_kinds=()),
    _method(
        "oft",
        "OFTConfig",
        lambda n: _inputs(n) // 2,
        (*MATRICES, *CONVOLUTIONS, *ATTENTIONS),
        oft_block_size=2,
        oracle_kinds=_REFERENCE_MATRICES,
        open=True,
    ),
    _method(
        "oft-cayley-shared",
        "OFTConfig",
        lambda n: 1,
        MATRICES,
        oft_block_size=2,
        block_share=True,
        open=True,
        use_cayley_neumann=False,
        oracle_kinds=_REFERENCE_MATRICES,
    ),
    _method(
        "oft-embedding",
        "OFTConfig",
        lambda n: n.out // 2,
        EMBEDDINGS,
        oft_block_size=2,
        open=True,
        oracle_kinds=("embedding",),
    ),
    _method(
        "boft",
        "BOFTConfig",
        lambda n: 2 * _inputs(n) + n.out,
        (*MATRICES, *CONVOLUTIONS, *ATTENTIONS),
        boft_block_size=2,
        oracle_kinds=_REFERENCE_MATRICES,
        gaps=_SQUARE,
    ),
)
_SCALES = (
    _method(
        "ia3",
        "IA3Config",
        lambda n: n.out,
        _NO_ATTENTION,
        feedforward_modules=[],
        oracle_kinds=(*MATRICES, *_REFERENCE_CONVOLUTIONS, "grouped_conv2d", "conv3d"),
    ),
    _method(
        "ia3-at-input",
        "IA3Config",
        lambda n: n.width,
        (*MATRICES, *CONVOLUTIONS),
        open=True,
        feedforward_modules=["first", "second"],
        oracle_kinds=(*MATRICES, *_REFERENCE_CONVOLUTIONS, "conv3d"),
    ),
)


def _ours(
    name: str,
    config: str,
    size: Callable[[Layer], int],
    kinds: tuple[str, ...],
    *,
    merges: bool = True,
    open: bool = True,
    gaps: Mapping[tuple[str, str], str] | None = None,
    **options: Any,
) -> Row:
    """A row of a method that the reference does not have, or has under another form of file."""
    return Row(name, config, kinds, each(size), options, merges=merges, open=open, gaps=gaps or {})


_LAST_WINS = "what it trains takes the place of the base's own, so the last active one counts"
HIDDEN = "of two that train the same only one can be active"
_SELECTIVE = (
    _ours(
        "bitfit",
        "BitFitConfig",
        lambda n: n.bias,
        (
            "linear",
            "transposed_linear",
            "dilated_conv1d",
            "conv2d",
            "padded_conv2d",
            "conv3d",
            "grouped_conv2d",
            "attention",
            "attention_batch_first",
            "encoder_layer",
        ),
        gaps={("stacked_counts", ""): _LAST_WINS, ("merge_carries", ""): "only the bias changes"},
    ),
    _method(
        "ln_tuning",
        "LNTuningConfig",
        lambda n: _weights(n) + n.bias,
        (*MATRICES, *CONVOLUTIONS, *EMBEDDINGS),
        oracle_kinds=(*MATRICES, *CONVOLUTIONS, *EMBEDDINGS),
        open=True,
        gaps={("stacked_counts", ""): HIDDEN},
    ),
    _ours(
        "last_layers",
        "LastLayersConfig",
        lambda n: _weights(n) + n.bias,
        (*MATRICES, *CONVOLUTIONS, *EMBEDDINGS),
        gaps={("stacked_counts", ""): HIDDEN},
    ),
    _method(
        "trainable_tokens",
        "TrainableTokensConfig",
        lambda n: 2 * n.out,
        EMBEDDINGS,
        oracle_kinds=("embedding",),
        token_indices=[5, 11],
        open=True,
        gaps={("stacked_counts", ""): HIDDEN},
    ),
    _method(
        "trainable_tokens-at-head",
        "TrainableTokensConfig",
        lambda n: 2 * n.width,
        MATRICES,
        oracle_kinds=("linear_without_bias",),
        token_indices=[3, 8],
        open=True,
        gaps={("stacked_counts", ""): HIDDEN, ("oracle", "linear"): "the reference loses the head's bias"},
    ),
    _ours("sparse", "SparseConfig", lambda n: max(1, round(0.05 * _weights(n))), _MATRIX_LIKE, density=0.05),
    _ours(
        "sparse-random",
        "SparseConfig",
        lambda n: max(1, round(0.05 * _weights(n))),
        MATRICES,
        density=0.05,
        selection="random",
    ),
)
_ADDITIVE = (
    _ours("bottleneck", "BottleneckConfig", lambda n: 2 * n.out * max(1, n.out // 4) + n.out + max(1, n.out // 4),
          (*_VECTORS, "module"), merges=False, reduction_factor=4),
    _ours("reft", "ReftConfig", lambda n: 4 * n.out + 2, (*_VECTORS, "module"), merges=False, r=2),
    _ours("reft-noreft", "ReftConfig", lambda n: 4 * n.out + 2, ("linear", "module"), merges=False, r=2,
          variant="noreft"),
    _ours("reft-direft", "ReftConfig", lambda n: 4 * n.out + 2, ("linear", "module"), merges=False, r=2,
          variant="direft"),
)  # fmt: skip

_TWICE_THE_RANK = {("oracle", ""): "the reference trains the start too: tests/methods/test_starts.py compares outputs"}

_SPECTRAL = (
    _method("deft", "DeftConfig", lambda n: 4 * (n.out + n.width), (*MATRICES, *ATTENTIONS), r=4, alpha=6.0),
    _method("deft-qr", "DeftConfig", lambda n: 4 * (n.out + n.width), MATRICES, r=4, decomposition_method="qr",
            open=True),
    _method("peanut", "PeanutConfig", lambda n: 8 * n.out + 32, (*MATRICES, *ATTENTIONS), r=4, depth=1,
            act_fn="tanh", oracle_kinds=_REFERENCE_MATRICES),
    _method("osf", "OSFConfig", lambda n: -(-min(n.out, n.width) // 2) * (n.out + n.width + 1),
            (*MATRICES, *ATTENTIONS), oracle_kinds=_REFERENCE_MATRICES),
    _method("supertuning", "SupertuningConfig", lambda n: int((1 - 0.9) * n.out * n.width) + 4 * (n.out + n.width),
            (*MATRICES, *ATTENTIONS), sparsity=0.9, r=4, oracle_kinds=_REFERENCE_MATRICES),
    _method("beft", "BeftConfig", lambda n: n.out, (*MATRICES, *CONVOLUTIONS), oracle_kinds=_LINEARS,
            gaps={("merge_carries", ""): "only the bias changes"}),
)  # fmt: skip

_FACTORED = ("linear", "linear_without_bias", "transposed_linear", *ATTENTIONS)
_PLAIN_IN_EVAL = {("gradients", ""): "the sampler is trained in train mode alone, and this check is in eval mode",
                  ("bfloat16", ""): "as gradients", ("autocast", ""): "as gradients"}  # fmt: skip
_LORA_VARIANTS = (
    _lora("bdlora", MATRICES, each(lambda n: 4 * (n.width // 2 + n.out) if n.out == 12 else 4 * (n.width + n.out // 2)),
          use_bdlora={"target_modules_bd_a": ["first"], "target_modules_bd_b": ["second"], "nblocks": 2}, open=True,
          gaps=_beyond(MATRICES, _LINEARS)),
    _lora("kasa", (*_FACTORED, "parameter"), each(lambda n: 4 * (n.width + n.out + 1)), kasa_config={},
          starts_at_base=False, gaps=_beyond((*_FACTORED, "parameter"), _LINEARS)),
    _lora("monteclora", MATRICES, each(lambda n: 4 * (n.width + n.out + 1) + 5), gaps=_PLAIN_IN_EVAL,
          monteclora_config={"num_samples": 5, "sample_scaler": 0.1}),
    _lora("velora", MATRICES, velora_config={"num_groups": 3}),
    _lora("velora-once", MATRICES, velora_config={"num_groups": 3, "init_type": "batch_average_once"}, open=True),
    _lora("velora-random", MATRICES, velora_config={"num_groups": 3, "init_type": "random"}, open=True),
    _lora("qalora", (*_FACTORED, "parameter"), each(lambda n: 4 * (n.width // 4 + n.out)), use_qalora=True,
          qalora_group_size=4,
          gaps={("oracle", ""): "the reference has it for GPTQ layers alone and trains plain LoRA here"}),
)  # fmt: skip

_SHARED = (
    Row("lily", "LilyConfig", MATRICES, each(lambda n: 4 * (n.width + 3 * n.out + 3)),
        {"r": 4, "stride_A": 2, "num_B": 3}, merges=False, oracle="LilyConfig",
        gaps=_beyond(MATRICES, _LINEARS)),
    _method("frod", "FrodConfig", lambda n: n.width + int(0.1 * n.width**2), MATRICES, sparse_rate=0.1,
            progressbar=False,
            gaps={("oracle", ""): "the reference takes V from the file and U from its own V: see test_frod.py"}),
    _method("frod-from-seed", "FrodConfig", lambda n: n.width + int(0.1 * n.width**2), MATRICES, sparse_rate=0.1,
            progressbar=False, save_projection=False, open=True,
            gaps={("oracle", ""): "V is computed by another algorithm than the reference's"}),
)  # fmt: skip

_WITH_INPUTS = (
    Row("alora", "LoraConfig", MATRICES, lora_count(), {"r": 4, "lora_alpha": 6, "alora_invocation_tokens": [1]},
        merges=False, oracle="LoraConfig", inputs={"alora_offsets": [2, None, 4]},
        gaps=_beyond(MATRICES, _LINEARS)),
    Row("poly", "PolyConfig", MATRICES, each(lambda n: 3 * 4 * (n.width + n.out) + 2 * 2 * 3),
        {"r": 4, "n_tasks": 2, "n_skills": 3, "n_splits": 2}, merges=False, oracle="PolyConfig",
        inputs={"task_ids": torch.tensor([1, 0, 1])}, gaps=_beyond(MATRICES, _LINEARS)),
)  # fmt: skip

ROWS: tuple[Row, ...] = (
    *_LORA_VARIANTS,
    *_WITH_INPUTS,
    *_SHARED,
    _lora("lora"),
    _lora("lora-rslora", use_rslora=True),
    _lora("lora-gaussian", init_lora_weights="gaussian"),
    _lora("lora-random-start", init_lora_weights=False, starts_at_base=False),
    _lora("lora-dropout", (*MATRICES, *CONVOLUTIONS, *EMBEDDINGS, *ATTENTIONS), lora_dropout=0.3),
    _lora("lora-patterns", (*MATRICES, *CONVOLUTIONS), lora_count(ranks=(8, 2)), open=True,
          rank_pattern={"first": 8, "sec.nd": 2}, alpha_pattern={"first": 7, "second": 3.5}),
    _lora("lora-own-bias", (*MATRICES, *CONVOLUTIONS), lora_count(bias=True), lora_bias=True),
    _lora("lora-bias-all", count=plus(lora_count(), all_biases), bias="all"),
    _lora("lora-bias-only", count=plus(lora_count(), adapted_biases), bias="lora_only"),
    _lora("lora-both-biases", (*MATRICES, *CONVOLUTIONS), plus(lora_count(bias=True), all_biases), bias="all",
          lora_bias=True, open=True),
    _lora("lora-pissa", MATRICES, init_lora_weights="pissa", open=True, gaps=_TWICE_THE_RANK),
    _lora("dora-olora", MATRICES, lora_count(dora=True), init_lora_weights="olora", use_dora=True, open=True,
          gaps=_TWICE_THE_RANK),
    _lora("lora-trained-head", count=plus(lora_count(), head_size), modules_to_save=["head"],
          gaps={("stacked_counts", ""): HIDDEN}),
    _lora("dora", count=lora_count(dora=True), use_dora=True, gaps=_GROUPED_DORA),
    _lora("dora-rslora-dropout", (*MATRICES, *CONVOLUTIONS, *EMBEDDINGS, *ATTENTIONS), lora_count(dora=True),
          use_dora=True, use_rslora=True, lora_dropout=0.2, gaps=_GROUPED_DORA),
    _lora("dora-random-start", (*MATRICES, *EMBEDDINGS), lora_count(dora=True), use_dora=True, init_lora_weights=False,
          starts_at_base=False, open=True),
    *_LOW_RANK,
    *_PRODUCTS,
    *_SCALES,
    *_SELECTIVE,
    *_ADDITIVE,
    *_SPECTRAL,
)  # fmt: skip

CASES = [(row, replace(KINDS[kind], extra=row.inputs)) for row in ROWS for kind in row.kinds]
_TAKES_PARAMETERS = ("LoraConfig",)
"""Configs with `target_parameters`; the others cannot even be asked to adapt one."""
REFUSED = [
    (row, kind)
    for row in ROWS
    for kind in KINDS.values()
    if kind.name not in row.kinds
    and not row.open
    and (row.config in _TAKES_PARAMETERS or "target_parameters" not in kind.targets)
]
