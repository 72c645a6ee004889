"""Values of adapters under other names than their own, to be read and assigned there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch.nn.functional as F
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

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The values that are parameters, as of one of torch's containers."""
        for key, value in self.items():
            if isinstance(value, nn.Module):
                yield from ((f"{key}.{n}", p) for n, p in value.named_parameters())
            elif isinstance(value, nn.Parameter):
                yield key, value

    def parameters(self) -> Iterator[nn.Parameter]:
        """The values that are parameters."""
        return (p for _, p in self.named_parameters())

    def __repr__(self) -> str:
        return repr(dict(self))


class Several(nn.Module):
    """Several values of one adapter, each by its own name, to be read and assigned; with a matrix called `weight` it is
    called as a linear layer."""

    _found: Mapping[str, tuple[Any, str]]

    def __init__(self, found: Mapping[str, tuple[Any, str]]) -> None:
        super().__init__()
        self.__dict__["_found"] = found
        for name, (owner, attribute) in found.items():
            value = getattr(owner, attribute)
            (self._parameters if value is None or isinstance(value, nn.Parameter) else self._buffers)[name] = value

    @property
    def in_features(self) -> int:
        """Of the matrix."""
        return int(self.get_parameter("weight").shape[1])

    @property
    def out_features(self) -> int:
        """Of the matrix."""
        return int(self.get_parameter("weight").shape[0])

    def forward(self, x: Tensor) -> Tensor:
        weight = self.get_parameter("weight")
        if weight.dim() != 2:
            raise ConfigError("only a matrix can be called by itself", where="layer.NAME[adapter]",
                              got=f"weight of {tuple(weight.shape)}", fix="call the layer")  # fmt: skip
        return F.linear(x, weight, self._parameters.get("bias"))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dict__.get("_found", ()):
            return super().__setattr__(name, value)
        owner, attribute = self._found[name]
        assign(owner, attribute, value)
        (self._parameters if name in self._parameters else self._buffers)[name] = getattr(owner, attribute)


def assign(owner: Any, attribute: str, value: Any) -> None:
    """Set an attribute; a plain tensor in a parameter's place becomes one that trains as that did."""
    old = getattr(owner, attribute)
    if isinstance(old, nn.Parameter) and isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        value = nn.Parameter(value.detach(), requires_grad=old.requires_grad)
    if isinstance(old, Tensor) and (not isinstance(value, Tensor) or value.shape != old.shape):
        raise ConfigError("a tensor of the same shape is needed", where=attribute, expected=tuple(old.shape),
                          got=tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__)  # fmt: skip
    setattr(owner, attribute, value)
