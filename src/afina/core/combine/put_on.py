"""A combined or converted adapter that is put on a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from ...errors import ConfigError
from ..config import LayerConfig
from ..hosts.adapter import Adapter
from ..hosts.host import hosts
from ..inject.injection import inject
from .unload import delete


def put(
    holder: nn.Module, model: nn.Module, name: str, config: LayerConfig,
    fills: Mapping[str, Callable[[Adapter], None]],
) -> None:  # fmt: skip
    """Inject an adapter whose values are known, frozen and not active; nothing stays of it if that fails."""
    inject(model, config, name, low_cpu_mem_usage=True, container=holder)
    done = False
    try:
        for path, host in hosts(model):
            adapter = host.adapter(name)
            if adapter is None:
                continue
            if path not in fills:
                raise ConfigError("the combined targets match a layer that no adapter is on", where=path)
            fills[path](adapter)
            adapter.to(host.base.device).requires_grad_(False)
        done = True
    finally:
        if not done:
            delete(holder, name)
