"""Modules of which a model gets hundreds."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class LightModule(nn.Module):
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
