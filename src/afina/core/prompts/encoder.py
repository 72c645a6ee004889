"""The contract of methods that add virtual tokens: an encoder that gives embeddings, or keys and values."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import AfinaWarning, ConfigError
from ..config import LayerConfig, PeftConfig, TaskType, bounded
from ..layers.partitioned import gathered_in
from ..layers.sharded import shared_like
from ..validate import idle_options
from .key_shapes import key_shapes, layer_keys, text_config, widest


@dataclass(kw_only=True)
class PromptLearningConfig(PeftConfig):
    """What every method with virtual tokens has; sizes that are None are taken from the model.

    Attributes:
        num_virtual_tokens: how many.
        token_dim: width of a token's embedding; for methods that fill the cache, of one key with all its heads.
        num_transformer_submodules: 2 for encoder-decoder models, else 1.
        num_attention_heads: heads of the keys.
        num_layers: layers of the model.
        modules_to_save: modules that train whole, as copies, and are saved with the adapter, such as a fresh head.
    """

    num_virtual_tokens: int = bounded(20, ge=1, le=100_000)
    token_dim: int | None = bounded(None, ge=1)
    num_transformer_submodules: int | None = bounded(None, ge=1, le=2)
    num_attention_heads: int | None = bounded(None, ge=1)
    num_layers: int | None = bounded(None, ge=1)
    modules_to_save: list[str] | None = None

    is_prompt_learning: ClassVar[bool] = True
    default_learning_rate: ClassVar[float] = 1e-2

    def as_layers(self) -> LayerConfig:
        """The part that concerns trained copies of modules, for the injection of those alone."""
        saved = LayerConfig(target_modules=[], modules_to_save=self.modules_to_save)
        saved.peft_type = self.peft_type
        return saved


@dataclass
class PromptSite:
    """What an encoder is built for.

    Attributes:
        tokens: number of virtual tokens (of all submodules together).
        dim: width of a token's embedding; of one key (and value) with all heads, for caches.
        layers, heads: of the attention whose cache is prefixed.
        vocabulary: the frozen word embeddings, (vocabulary, dim).
        model: the base model, for encoders that start from what it computes.
    """

    tokens: int
    dim: int
    layers: int
    heads: int
    vocabulary: nn.Module | None
    dtype: torch.dtype
    device: torch.device
    model: nn.Module | None = field(default=None, repr=False)

    def zeros(self, *shape: int) -> nn.Parameter:
        """A trainable parameter of zeros."""
        return nn.Parameter(torch.zeros(shape, dtype=self.dtype, device=self.device))

    def normal(self, *shape: int, std: float = 1.0) -> nn.Parameter:
        """A trainable parameter from N(0, std^2)."""
        return nn.Parameter(torch.randn(shape, dtype=self.dtype, device=self.device) * std)

    def rows(self, ids: Tensor) -> Tensor:
        """The frozen embeddings of token ids: (len(ids), dim)."""
        if getattr(self.vocabulary, "weight", None) is None:  # a model of images embeds patches
            raise ConfigError("the model has no word embeddings to start from", where="prompt")
        assert self.vocabulary is not None
        with torch.no_grad(), gathered_in(self.vocabulary):
            out: Tensor = self.vocabulary(ids.to(next(self.vocabulary.parameters()).device))
        return out.detach().to(self.dtype)


class PromptEncoder(nn.Module):
    """Virtual tokens of one adapter.

    A subclass writes `encode`. What it gives is the table that the reference stores as `prompt_embeddings`; where the
    table is computed by a network, the network is stored too, so that training can go on. A file without the network
    (the reference drops it) loads as a fixed table.

    Args:
        site: sizes, dtype, device and embeddings of the base.
        config: the method's configuration.

    Attributes:
        goes_into: "embeddings": before the input embeddings; "cache": before every layer's keys and values.
        inputs: keyword arguments of the model's forward that the encoder consumes (`task_ids`).
    """

    goes_into: ClassVar[str] = "embeddings"
    inputs: ClassVar[frozenset[str]] = frozenset()
    disk_names: ClassVar[Mapping[str, str]] = MappingProxyType({"embedding.weight": "prompt_encoder.embedding"})
    prefix: ClassVar[str] = "prompt_encoder"
    has_penalty: ClassVar[bool] = False

    def __init__(self, site: PromptSite, config: Any) -> None:
        super().__init__()
        self.tokens = site.tokens
        self.table: nn.Parameter | None = None

    def encode(self) -> Tensor:
        """The virtual tokens: (tokens, dim), or (tokens, 2 * layers * dim) for caches."""
        raise NotImplementedError

    def forward(self, batch: int, **inputs: Any) -> Tensor:
        """The virtual tokens of a `batch` of rows: (batch, tokens, width); `inputs`: what the encoder consumes."""
        table = self.encode() if self.table is None else self.table
        return table.unsqueeze(0).expand(batch, -1, -1)

    def labels(self) -> Tensor | None:
        """Labels of the virtual tokens (tokens,), -100 where there is none; None if no token has one."""
        return None

    def label_weights(self) -> Tensor | None:
        """How much the loss at each virtual token's label counts (tokens,), a row's own labels counting 1; None: 1."""
        return None

    @property
    def is_table(self) -> bool:
        """Whether nothing but the table is trained."""
        return self.table is not None

    def disk_state(self) -> dict[str, Tensor]:
        """What is saved: the table, and the network that computes it under its own names."""
        with torch.no_grad():
            table = self.encode() if self.table is None else self.table
        own = {} if self.table is not None else dict(self.state_dict())
        return {
            "prompt_embeddings": table,
            **{self.disk_names.get(n, f"prompt_encoder.{n}"): t for n, t in own.items()},
        }

    def disk_shapes(self, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """What a file must hold (name -> shape), if it has what was `found`; the network may be missing as a whole."""
        full = {n: tuple(t.shape) for n, t in self.disk_state().items()}
        network = [n for n in full if n.startswith("prompt_encoder.")]
        return full if any(n in found for n in network) else {n: s for n, s in full.items() if n not in network}

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a file's `tensors`, by their names on disk."""
        own = {n: self.disk_names.get(n, f"prompt_encoder.{n}") for n in self.state_dict() if n != "table"}
        if all(disk in tensors for disk in own.values()):
            self.table = None
            now = self.state_dict()
            self.load_state_dict({n: shared_like(now[n], tensors[disk]) for n, disk in own.items()})
            return
        first = next(self.parameters())
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.table = nn.Parameter(tensors["prompt_embeddings"].to(first).clone(), requires_grad=False)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes; none where only the table is known."""
        return {} if self.table is not None else dict(self.named_parameters())


class TablePromptEncoder(PromptEncoder):
    """Virtual tokens that are trained as they are: `embedding` of (tokens, width), stored as `prompt_embeddings`."""

    disk_names: ClassVar[Mapping[str, str]] = {"embedding.weight": "prompt_embeddings"}
    embedding: nn.Embedding

    def encode(self) -> Tensor:
        return self.embedding.weight


def embedding_of(rows: nn.Parameter) -> nn.Embedding:
    """A module that holds the `rows` (tokens, width), under the name that scripts read in the reference."""
    return nn.Embedding(rows.shape[0], rows.shape[1], _weight=rows)


def _reads_tokens(model: nn.Module) -> bool:
    """Whether a model takes tokens or their embeddings; those of transformers that take images or sounds alone do
    not, whatever their `get_input_embeddings` gives."""
    if not hasattr(model, "main_input_name"):
        return True
    return bool({"input_ids", "inputs_embeds"} & set(inspect.signature(model.forward).parameters))


def complete(config: PromptLearningConfig, model: nn.Module, goes_into: str) -> None:
    """Fill in the sizes that the `config` leaves to the `model`, and compare those that it gives.

    Raises:
        ConfigError: a size is neither given nor found in the model's config, or is another model's.
    """
    if not _reads_tokens(model):
        raise ConfigError("the model takes no tokens that virtual ones could stand before", where="peft_type",
                          got=type(model).__name__, fix="take a method that adapts layers, such as LoRA")  # fmt: skip
    if idle := [] if config.inference_mode else idle_options(config, config.needs):
        warnings.warn(f"{config.peft_type}: without effect: {'; '.join(idle)}", AfinaWarning, stacklevel=6)
    given = {key: getattr(config, key) for key in _SIZES}
    for key in _SIZES:
        setattr(config, key, None)
    try:
        found = _found(config, model, goes_into)
    finally:
        for key, value in given.items():
            setattr(config, key, value)
    for key, own in found.items():
        value = given[key]
        if value is None and own[0] is None:
            raise ConfigError("the model's config does not say", where=key, fix=f"give {key}=... in the config")
        given_only = key == "num_attention_heads" and (goes_into != "cache" or _says_no_heads(text_config(model)))
        if value is not None and own[0] is not None and value not in own and not given_only:
            raise ConfigError("the virtual tokens are for a model of another size", where=key, got=value,
                              expected=f"{own[0]} by this model", fix="is it for another base?")  # fmt: skip
        setattr(config, key, own[0] if value is None or value in own else value)
    assert config.token_dim is not None
    assert config.num_attention_heads is not None
    if goes_into == "cache" and config.token_dim % config.num_attention_heads:
        raise ConfigError("must divide token_dim", where="num_attention_heads", got=config.num_attention_heads,
                          expected=f"a divisor of {config.token_dim}")  # fmt: skip
    if goes_into == "cache" and config.num_layers is not None:
        layer_keys(model, config.num_layers, config.token_dim, config.num_attention_heads)
    if config.num_transformer_submodules is None:
        config.num_transformer_submodules = 2 if config.task_type == TaskType.SEQ_2_SEQ_LM else 1
    if getattr(config, "encoder_hidden_size", 0) is None:
        config.encoder_hidden_size = config.token_dim  # type: ignore[attr-defined]


_SIZES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "num_layers": ("num_hidden_layers", "num_layers", "n_layer"),
    "token_dim": ("hidden_size", "n_embd", "d_model"),
    "num_attention_heads": ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads"),
})  # fmt: skip
"""Field -> how configs of models call it."""


def _found(config: PromptLearningConfig, model: nn.Module, goes_into: str) -> dict[str, tuple[int | None, ...]]:
    """Field -> what this model says: the size to take, and others that mean the same."""
    text = text_config(model)
    sizes = {k: next((getattr(text, n) for n in names if isinstance(getattr(text, n, None), int)), None)
             for k, names in _SIZES.items()}  # fmt: skip
    out: dict[str, tuple[int | None, ...]] = {k: (v,) for k, v in sizes.items()}
    if goes_into == "cache" and sizes["token_dim"] is not None and sizes["num_attention_heads"] is not None:
        config.token_dim, config.num_attention_heads = sizes["token_dim"], sizes["num_attention_heads"]
        _key_width(config, text, sizes["num_layers"] or 1)
        out["token_dim"] = (config.token_dim, sizes["token_dim"])
        out["num_attention_heads"] = (config.num_attention_heads, sizes["num_attention_heads"])
    return out


def _says_no_heads(text: Any) -> bool:
    """Whether a model's config leaves open how many heads its keys have, or layers differ."""
    return any(getattr(text, n, None) for n in ("multi_query", "is_heterogeneous", "num_kv_shared_layers"))


def _key_width(config: PromptLearningConfig, text: Any, layers: int) -> None:
    """Keys may have fewer heads than queries, and heads of a width of their own."""
    assert config.token_dim is not None
    assert config.num_attention_heads is not None
    heads, width = widest(key_shapes(text, layers, config.token_dim, config.num_attention_heads))
    config.num_attention_heads, config.token_dim = heads, width * heads
