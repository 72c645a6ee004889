"""Functions of `peft`'s inner modules that scripts import: what is installed, combining tensors, reading weights."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..core.combine.task_vectors import combine
from ..core.config import PeftConfig, register
from ..core.hosts.adapter import Adapter
from ..core.hosts.host import Host
from ..core.inject.patterns import name_in
from ..core.layers.recognise import base_weight
from ..core.prompts.encoder import PromptEncoder
from ..errors import ConfigError


def _installed(package: str) -> Any:
    def is_available(check_device: bool = True) -> bool:
        return importlib.util.find_spec(package) is not None

    return is_available


is_bnb_available = is_bnb_4bit_available = _installed("bitsandbytes")
is_gptqmodel_available = _installed("gptqmodel")
is_eetq_available = _installed("eetq")
is_aqlm_available = _installed("aqlm")
is_hqq_available = _installed("hqq")
is_torchao_available = _installed("torchao")
is_diffusers_available = _installed("diffusers")
is_optimum_available = _installed("optimum")
is_inc_available = _installed("neural_compressor")
is_te_available = is_te_pytorch_available = _installed("transformer_engine")
is_torch_tpu_available = _installed("torch_xla")


def is_xpu_available(check_device: bool = False) -> bool:
    """Whether torch finds an Intel GPU."""
    return bool(torch.xpu.is_available())


def task_arithmetic(task_tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The weighted sum."""
    return combine(task_tensors, weights.tolist())


def magnitude_prune(task_tensors: Sequence[Tensor], weights: Tensor, density: float) -> Tensor:
    """The weighted sum of each tensor's largest elements."""
    return combine(task_tensors, weights.tolist(), "magnitude_prune", density)


def ties(
    task_tensors: Sequence[Tensor], weights: Tensor, density: float, majority_sign_method: str = "total"
) -> Tensor:
    """As `magnitude_prune`, of the elements that have the elected sign."""
    return combine(task_tensors, weights.tolist(), "ties", density, majority_sign_method)


def dare_linear(task_tensors: Sequence[Tensor], weights: Tensor, density: float) -> Tensor:
    """The weighted sum of randomly kept elements."""
    return combine(task_tensors, weights.tolist(), "dare_linear", density)


def dare_ties(
    task_tensors: Sequence[Tensor], weights: Tensor, density: float, majority_sign_method: str = "total"
) -> Tensor:
    """As `dare_linear`, of the elements that have the elected sign."""
    return combine(task_tensors, weights.tolist(), "dare_ties", density, majority_sign_method)


def dequantize_module_weight(module: nn.Module) -> Tensor:
    """A layer's weight in its own layout, dequantised."""
    layer = base_weight(module.get_base_layer() if isinstance(module, Host) else module)
    return layer.stored(layer.read()[0]).detach()


@contextlib.contextmanager
def onload_layer(layer: nn.Module) -> Iterator[None]:
    """Nothing to do: offloaded layers are read where they lie."""
    yield


def check_adapters_to_merge(module: Any, adapter_names: list[str] | None = None) -> list[str]:
    """Those of the named (active) adapters that are not merged."""
    return [n for n in adapter_names or module.active_adapters if n not in module.merged_adapters]


def check_target_module_exists(config: Any, key: str) -> bool:
    """Whether a config's targets name the module `key`."""
    return config.target_modules is not None and name_in(key, config.target_modules)


def bloom_model_postprocess_past_key_value(past_key_values: Iterable[Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
    """Keys and values (2 * layers, batch, heads, tokens, width) in the reference's order for BLOOM's first caches: keys
    (layers, batch * heads, width, tokens), values (layers, batch * heads, tokens, width)."""
    keys, values = torch.cat(list(past_key_values)).chunk(2)
    layers, batch, heads, tokens, width = keys.shape
    keys = keys.transpose(2, 3).reshape(layers, batch * heads, width, tokens)
    return tuple(zip(keys, values.flatten(1, 2), strict=True))


POSTPROCESSING = MappingProxyType({"bloom": bloom_model_postprocess_past_key_value})
"""For transformers' old caches."""


def register_peft_method(
    *,
    name: str,
    config_cls: type[PeftConfig],
    model_cls: type[Any],
    prefix: str | None = None,
    is_mixed_compatible: bool = False,
) -> None:
    """Make a method of the user's known, as `afina.core.config.register` does.

    Args:
        name: in lower case; its `peft_type` is the same in upper case.
        model_cls: an `Adapter` (what one layer becomes) or a `PromptEncoder`. All else (injection, several adapters,
            merging, files) is the same for all methods, so there is no class of models to write.
        prefix: what the method's parameters' names begin with.
        is_mixed_compatible: every method is.

    Raises:
        ConfigError: another method has this name, or the class is none of these.
    """
    if not (isinstance(model_cls, type) and issubclass(model_cls, (Adapter, PromptEncoder))):
        raise ConfigError("a method is a class for one layer here, not one for models", where="model_cls",
                          got=getattr(model_cls, "__name__", model_cls), expected="an Adapter or a PromptEncoder",
                          fix='see "A method of your own" in docs/drop-in.md')  # fmt: skip
    if prefix is not None and issubclass(model_cls, Adapter):
        model_cls.prefix = prefix
    register(name.upper(), config_cls)(model_cls)


class BufferDict(nn.Module):
    """Tensors by name that are buffers of one module."""

    def __init__(self, buffers: dict[str, Tensor] | None = None, persistent: bool = False) -> None:
        super().__init__()
        self.persistent = persistent
        self.update(buffers or {})

    def __getitem__(self, key: str) -> Tensor:
        found = self._buffers[key]
        assert found is not None
        return found

    def __setitem__(self, key: str, buffer: Tensor) -> None:
        self.register_buffer(key, buffer, persistent=self.persistent)

    def __delitem__(self, key: str) -> None:
        del self._buffers[key]

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._buffers)

    def __contains__(self, key: object) -> bool:
        return key in self._buffers

    def update(self, buffers: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        """Put all of these in."""
        for key, buffer in dict(buffers).items():
            self[key] = buffer

    def keys(self) -> Iterable[str]:
        """The names."""
        return self._buffers.keys()

    def values(self) -> list[Tensor]:
        """The tensors."""
        return [self[key] for key in self]

    def items(self) -> list[tuple[str, Tensor]]:
        """Names and tensors."""
        return [(key, self[key]) for key in self]
