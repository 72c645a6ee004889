"""The registry peft_type -> method, filled when the first method is asked for."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from .config import PeftConfig


class _OpenEnum(type):
    """A class whose members are the registered methods, so that the core names none of them."""

    def __iter__(cls) -> Iterator[PeftType]:
        return (PeftType(name) for name in methods())

    def __len__(cls) -> int:
        return len(methods())

    def __contains__(cls, item: object) -> bool:
        return isinstance(item, str) and item in methods()

    def __getitem__(cls, name: str) -> PeftType:
        if name in methods():
            return PeftType(name)
        raise KeyError(name)

    def __getattr__(cls, name: str) -> PeftType:
        if not name.startswith("_") and name in methods():
            return PeftType(name)
        raise AttributeError(f"PeftType has no member {name!r}")


class PeftType(str, metaclass=_OpenEnum):
    """The name of a registered method, e.g. `PeftType("LORA")`; behaves like a `str` enumeration."""

    __slots__ = ()

    @property
    def value(self) -> str:
        """The plain string."""
        return str.__str__(self)

    @property
    def name(self) -> str:
        """The plain string, as `Enum.name` is."""
        return str.__str__(self)

    def __repr__(self) -> str:
        return f"<PeftType.{self.value}>"


@dataclass(frozen=True)
class Method:
    """One registered method."""

    config: type[PeftConfig]
    implementation: type[Any]
    """The class that implements it: an `Adapter` or a `PromptEncoder`."""
    family: Literal["baseline", "selective", "additive", "prompt", "reparam"]


class _Registry:
    """All methods by peft_type; the method files are imported when the first one is asked for."""

    def __init__(self) -> None:
        self.table: dict[str, Method] = {}
        self.discovered = False

    def loaded(self) -> dict[str, Method]:
        if not self.discovered:
            self.discovered = True
            # By name and late: the core must not depend on the methods.
            importlib.import_module(f"{__package__.partition('.')[0]}.methods").modules()
        return self.table


_REGISTRY = _Registry()
_T = TypeVar("_T", bound=type[Any])


def methods() -> dict[str, Method]:
    """Every registered method by its peft_type, in alphabetic order of the files."""
    return _REGISTRY.loaded()


def method(config: PeftConfig) -> Method:
    """The method that a config belongs to."""
    return methods()[str(config.peft_type)]


def config_class(name: str, where: object = None) -> type[PeftConfig]:
    """The config class of a method, by its name in any case and with `-` or `_`.

    Args:
        name: of the method: `lora`, `IA3`, `prefix-tuning`, ...
        where: what asks, for messages.

    Raises:
        ConfigError: no such method; names the nearest.
    """
    key = name.upper().replace("-", "_")
    if key not in methods():
        hint = did_you_mean(key, methods())
        raise ConfigError(
            "unknown method", where=where or "peft_type", got=name, expected=", ".join(methods()), fix=hint
        )
    return methods()[key].config


@functools.cache
def first_use() -> None:
    """Called when configs are made: the first one is when libraries have to take afina's models for theirs."""
    # By name and late, as the methods: the core knows nothing of other libraries.
    importlib.import_module(f"{__package__.partition('.')[0]}.compat.default").begin()


def register(peft_type: str, config: type[PeftConfig]) -> Callable[[_T], _T]:
    """Class decorator: make `config` and the decorated class known as the method `peft_type`."""

    def wrap(implementation: _T) -> _T:
        known = _REGISTRY.table.get(peft_type)
        if known is not None and known.implementation.__qualname__ != implementation.__qualname__:
            raise ConfigError("two methods have the same name", where="register", got=peft_type)
        config.method_type = peft_type
        folder = implementation.__module__.rpartition(".")[0].rpartition(".")[2]
        family = folder if folder in ("selective", "additive", "prompt", "reparam") else "baseline"
        _REGISTRY.table[peft_type] = Method(config, implementation, family)  # type: ignore[arg-type]
        return implementation

    return wrap
