"""The table of formats."""

from __future__ import annotations

from types import MappingProxyType

from ...errors import ConfigError, did_you_mean
from ..contract import Format
from .hub_folder import Hub
from .in_shards import Shards
from .peft_servers import Sglang, Vllm
from .to_diffusers import Diffusers, Kohya
from .to_gguf import Gguf, GgufLora
from .to_mlx import Mlx
from .to_onnx import Onnx

FORMATS = MappingProxyType(
    {f.name: f for f in (Shards(), Gguf(), GgufLora(), Vllm(), Sglang(), Mlx(), Onnx(), Hub(), Diffusers(), Kohya())}
)


def format_named(name: str) -> Format:
    """The format of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in FORMATS:
        raise ConfigError("no such format", where="--to", got=name, expected=", ".join(FORMATS),
                          fix=did_you_mean(name, FORMATS))  # fmt: skip
    return FORMATS[name]
