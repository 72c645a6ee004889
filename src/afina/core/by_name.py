"""Values of adapters under other names than their own, to be read and assigned there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError


class Places(MutableMapping[str, Any]):
    """What the reference calls `layer.NAME`: adapter name -> a value, or what has several as `.weight` and `.bias`.

    Entries are attributes too, as in torch's containers of modules; what is assigned is assigned to the adapter.
    """

    def __init__(self) -> None:
        # Adapter name -> its values, as (who has it, attribute there), by what follows the name in files.
        self._found: dict[str, dict[str, tuple[Any, str]]] = {}
        self._values: dict[str, Any] = {}

    def put(self, key: str, owner: Any, attribute: str, tail: str = "") -> None:
        """Note where a value is; `tail`: of several, its own name."""
        self._found.setdefault(key, {})[tail] = owner, attribute

    def answer(self, key: str, value: Any) -> None:
        """Note a value that is nowhere assigned to."""
        self._values[key] = value

    def __getitem__(self, key: str) -> Any:
        if key in self._values:
            return self._values[key]
        found = self._found[key]
        return getattr(*found[""]) if "" in found else Several(found)

    def __setitem__(self, key: str, value: Any) -> None:
        place = self._found.get(key, {}).get("")
        if place is None:
            raise ConfigError("nothing can be put here", where="layer.NAME[adapter]", got=key,
                              expected=", ".join(k for k, v in self._found.items() if "" in v) or "no assignment",
                              fix="add_adapter makes new adapters; settings are those of its config")  # fmt: skip
        assign(*place, value)

    def __delitem__(self, key: str) -> None:
        raise ConfigError("a part of an adapter cannot be deleted", where="layer.NAME[adapter]", got=key,
                          fix="call delete_adapter")  # fmt: skip

    def __iter__(self) -> Iterator[str]:
        return iter({**self._found, **self._values})

    def __len__(self) -> int:
        return len({**self._found, **self._values})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self:
            raise AttributeError(name)
        return self[name]

    def __repr__(self) -> str:
        return repr(dict(self))


class Several:
    """Several values of one adapter, each by its own name, to be read and assigned."""

    _found: Mapping[str, tuple[Any, str]]

    def __init__(self, found: Mapping[str, tuple[Any, str]]) -> None:
        self.__dict__["_found"] = found

    def __getattr__(self, name: str) -> Any:
        found = self.__dict__.get("_found", {}).get(name)
        if found is None:
            raise AttributeError(name)
        return getattr(*found)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._found:
            raise ConfigError("nothing can be put here", where="layer.NAME[adapter]", got=name,
                              expected=", ".join(self._found))  # fmt: skip
        owner, attribute = self._found[name]
        assign(owner, attribute, value)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of the values that are parameters."""
        return (v for v in (getattr(*place) for place in self._found.values()) if isinstance(v, nn.Parameter))

    def __repr__(self) -> str:
        return f"Several({', '.join(self._found)})"


def assign(owner: Any, attribute: str, value: Any) -> None:
    """Set an attribute; a plain tensor in a parameter's place becomes one that trains as that did."""
    old = getattr(owner, attribute)
    if isinstance(old, nn.Parameter) and isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        value = nn.Parameter(value.detach(), requires_grad=old.requires_grad)
    if isinstance(old, Tensor) and (not isinstance(value, Tensor) or value.shape != old.shape):
        raise ConfigError("a tensor of the same shape is needed", where=attribute, expected=tuple(old.shape),
                          got=tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__)  # fmt: skip
    setattr(owner, attribute, value)
