"""Modules of which a model gets hundreds."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...errors import ConfigError


class Unreplicated(nn.Module):
    """Modules of which `nn.DataParallel` can make no copies, because a copy has no parameters of its own."""

    def _replicate_for_data_parallel(self) -> Any:
        raise ConfigError("nn.DataParallel cannot run a model with adapters", where=type(self).__name__,
                          fix="show this process one GPU (CUDA_VISIBLE_DEVICES=0), or start one process for each "
                              "(torchrun, accelerate launch)")  # fmt: skip


class LightModule(Unreplicated):
    """Plain values are set without the search for parameters and modules that torch makes for each."""

    def hold(self, **values: Any) -> None:
        """Set attributes that are no tensors, modules or properties."""
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        own = self.__dict__
        if name in own and name not in _SLOTS and not isinstance(value, (Tensor, nn.Module)):
            own[name] = value
        elif (
            isinstance(value, (Tensor, nn.Module))
            or "_modules" not in own
            or name in own["_parameters"]
            or name in own["_modules"]
            or name in own["_buffers"]
            or hasattr(type(self), name)
        ):
            super().__setattr__(name, value)
        else:
            own[name] = value


_SLOTS = frozenset({"_parameters", "_modules", "_buffers"})
