"""The `forward` of a model with adapters, which says that it takes what its base's takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch


class LikeTheBase:
    """Decorates a model's method: as any method, but with the signature and documentation of the base model's.

    Libraries drop the columns of a data set that are no parameters of `forward`, and find labels among them.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, model: Any, kind: type | None = None) -> Any:
        if model is None:
            return self.function
        # A compiler follows this, and asks for no signature.
        return (
            functools.partial(self.function, model) if torch.compiler.is_compiling() else _Bound(self.function, model)
        )


class _Bound:
    """A bound method whose signature is looked up when it is asked for."""

    __slots__ = ("__func__", "__self__")

    def __init__(self, function: Callable[..., Any], model: Any) -> None:
        self.__func__, self.__self__ = function, model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__func__(self.__self__, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "__dict__":  # what the compiler guards, and then does not find again
            raise AttributeError(name)
        return getattr(self.__func__, name)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(getattr(self.__self__.get_base_model(), self.__func__.__name__))
