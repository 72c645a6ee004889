"""Models as llama.cpp knows them: architectures, names of tensors, what is said of sizes, the order of rotary rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.hosts.host import Host
from ...core.hosts.walk import outside_adapters
from ...core.inject.places import plain_path
from . import gguf_gemma

Array = NDArray[Any]


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp has a kind of model.

    Attributes:
        name: there.
        neighbours: whether its rotary positions turn neighbouring numbers of a head (2i, 2i+1), where transformers
            turns those that lie half a head apart; rows of queries and keys are put in that order then.
        scaled: whether it reads `rope_freqs`, by which rotary frequencies are divided.
        one_more: whether norms multiply by 1 + weight, which is written as the sum.
        window: of every so many layers all but the last see a window only; 0 where none does.
    """

    name: str
    neighbours: bool = False
    scaled: bool = False
    one_more: bool = False
    window: int = 0


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({
    "llama": Architecture("llama", neighbours=True, scaled=True),
    "mistral": Architecture("llama", neighbours=True, scaled=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma", one_more=True),
    "gemma2": Architecture("gemma2", one_more=True, window=2),
    "gemma3_text": Architecture("gemma3", one_more=True, window=6),
})  # fmt: skip
"""transformers' model type -> what is written."""
_SCALINGS = ("default", "linear", "llama3")
_TURNED = ("self_attn.q_proj", "self_attn.k_proj")


def refusal(config: Any) -> str | None:
    """Why a model cannot be written as GGUF here; None if it can."""
    kind = str(getattr(config, "model_type", None))
    if kind not in ARCHITECTURES:
        return f"models of type {kind} are not written as GGUF; these are: {', '.join(ARCHITECTURES)}"
    scaling = rope(config).get("rope_type", "default")
    allowed = _SCALINGS if ARCHITECTURES[kind].scaled else _SCALINGS[: 2 if kind == "gemma3_text" else 1]
    if scaling not in allowed:
        return f"rotary positions of type {scaling} are not written; these are: {', '.join(allowed)}"
    if ARCHITECTURES[kind].one_more:
        return gguf_gemma.refusal(config, ARCHITECTURES[kind].window)
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "llama.cpp has no sliding window for this architecture"
    return None


def rope(config: Any) -> dict[str, Any]:
    """The settings of rotary positions; where windows have their own, those of the layers that see all."""
    found = dict(getattr(config, "rope_parameters", None) or {})
    return dict(found.get("full_attention", found))


def head_size(config: Any) -> int:
    """Numbers of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def describe(writer: Any, config: Any) -> None:
    """Tell a GGUF writer the model's sizes."""
    size = head_size(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(rope(config)["rope_theta"]))
    if ARCHITECTURES[config.model_type].window:
        gguf_gemma.describe(writer, config)


class Names:
    """The names of a model's tensors in GGUF, and their rows' order there."""

    def __init__(self, config: Any) -> None:
        import gguf

        self.config, self.architecture = config, ARCHITECTURES[config.model_type]
        kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture.name)
        self.table = gguf.get_tensor_name_map(kind, config.num_hidden_layers)

    def of(self, module: str) -> str | None:
        """A module's name; None where llama.cpp has no such."""
        found: str | None = self.table.get_name(module)
        return found

    def rows(self, module: str, tensor: Tensor) -> Tensor:
        """A weight (outputs, inputs), a bias or a factor B with its rows as llama.cpp has them."""
        if not self.architecture.neighbours or not module.endswith(_TURNED):
            return tensor
        half = head_size(self.config) // 2
        return tensor.reshape(-1, 2, half, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)

    def values(self, module: str, tensor: Tensor) -> Tensor:
        """A parameter with its rows and numbers as llama.cpp has them."""
        if self.architecture.one_more and module.endswith("norm"):
            return tensor.float() + 1
        return self.rows(module, tensor)

    def frequencies(self, model: Any) -> Tensor | None:
        """What rotary frequencies are divided by, (head size / 2); None where by nothing."""
        if not self.architecture.scaled:
            return None
        size, base = head_size(self.config), float(rope(self.config)["rope_theta"])
        plain = base ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
        own = next(b for n, b in model.named_buffers() if n.endswith("rotary_emb.inv_freq")).double().cpu()
        factors = (plain / own).float()
        return None if torch.allclose(factors, torch.ones_like(factors), atol=1e-5) else factors


def stored(tensor: Tensor, storage: str) -> tuple[Array, Any]:
    """(bytes, GGML's type) of a tensor; what is no matrix stays in float32, rows that do not fill blocks in float16.

    Embeddings are kept in 8 bits where matrices have 4.
    """
    import gguf

    values: Array = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
    kind = gguf.GGMLQuantizationType[storage.upper()]
    if values.ndim < 2:
        kind = gguf.GGMLQuantizationType.F32
    elif kind in gguf.GGML_QUANT_SIZES and values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = gguf.GGMLQuantizationType.F16
    return gguf.quants.quantize(values, kind), kind


def parameters(model: Any, names: Names) -> Iterator[tuple[str, Tensor]]:
    """(name in GGUF, tensor) of all that a model has, without its adapters; one of two tied embeddings.

    Raises:
        KeyError: llama.cpp has no such tensor.
    """
    seen: set[int] = set()
    for path, module in outside_adapters(model):
        own = {} if isinstance(module, Host) else module._parameters
        for leaf, tensor in own.items():
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            plain = plain_path(path)
            known = names.of(plain)
            if known is None:
                raise KeyError(f"{plain}.{leaf}")
            yield f"{known}.{leaf}", names.values(plain, tensor)
