"""What adapters hold, as the reference's layers show it: `layer.lora_A["default"].weight`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ...errors import ConfigError

if TYPE_CHECKING:
    from .adapter import Adapter

SETTABLE = {"scaling": "scaling", "lora_dropout": "dropout"}
"""Settings that scripts change on a layer -> the adapter's attribute."""


class ByAdapter(dict[str, Any]):
    """What the reference calls `layer.NAME`: adapter name -> value, also as attributes (`layer.lora_A.default`). What
    is put in goes to the adapters."""

    def __init__(self, put: Callable[[str, Any], None]) -> None:
        super().__init__()
        self.__dict__["put"] = put

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"no adapter {name!r}; there are {', '.join(self) or 'none'}")
        return self[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.put(name, value)
        super().__setitem__(name, value)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As a module that holds them."""
        for name, value in self.items():
            if isinstance(value, nn.Module):
                yield from value.named_parameters(prefix=name)
            elif isinstance(value, nn.Parameter):
                yield name, value

    def parameters(self) -> Iterator[nn.Parameter]:
        """As a module that holds them."""
        return (p for _, p in self.named_parameters())


class Held(nn.Module):
    """Several tensors of an adapter as one module (`lora_B.weight`, `lora_B.bias`); what is set goes to the adapter."""

    if TYPE_CHECKING:
        adapter: Adapter
        attributes: dict[str, str]

    def __init__(self, adapter: Adapter) -> None:
        nn.Module.__init__(self)  # a linear layer's own would make tensors
        self.__dict__.update(adapter=adapter, attributes={})

    def show(self, name: str, attribute: str) -> None:
        """Show an attribute of the adapter under a name."""
        value = getattr(self.adapter, attribute)
        (self._parameters if isinstance(value, nn.Parameter) else self._buffers)[name] = value
        self.attributes[name] = attribute

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        put_tensor(self.adapter, self.attributes.get(name, name), param)
        super().register_parameter(name, param)


class HeldLinear(Held, nn.Linear):
    """Those of a matrix, which can be called; (..., in) -> (..., out)."""

    def show(self, name: str, attribute: str) -> None:
        super().show(name, attribute)
        if name == "weight":
            self.out_features, self.in_features = getattr(self.adapter, attribute).shape
            self._parameters.setdefault("bias", None)


def put_tensor(adapter: nn.Module, attribute: str, value: Any) -> None:
    """Let an adapter use another tensor in the place of one of its own.

    Raises:
        ConfigError: it has none of this name, or one of another shape.
    """
    old = getattr(adapter, attribute, None)
    if not isinstance(old, Tensor) or not isinstance(value, Tensor) or old.shape != value.shape:
        raise ConfigError("an adapter's tensor can be replaced by one of its shape alone", where=attribute,
                          got=tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__,
                          expected=tuple(old.shape) if isinstance(old, Tensor) else "a tensor that the adapter has",
                          fix="load another adapter under a new name")  # fmt: skip
    if isinstance(old, nn.Parameter) and not isinstance(value, nn.Parameter):
        value = nn.Parameter(value, old.requires_grad)
    setattr(adapter, attribute, value)


def reference_view(adapters: Mapping[str, Any], name: str) -> ByAdapter | None:
    """What the reference calls `layer.NAME`: adapter name -> a value, a tensor, or what has it as `.weight`."""
    out = ByAdapter(lambda adapter, value: _put(adapters, adapter, name, value))
    found: dict[str, Any] = {}
    for key, own in adapters.items():
        adapter = getattr(own, "shown", own)
        for attribute, tail in _of(adapter, name):
            if tail:  # several tensors of one module: lora_B.weight and lora_B.bias
                matrix = tail == "weight" and getattr(adapter, attribute).dim() == 2
                found.setdefault(key, (HeldLinear if matrix else Held)(adapter)).show(tail, attribute)
            else:
                found[key] = getattr(adapter, attribute)
        if name in adapter.reference_attributes:
            found[key] = adapter.in_reference(name)
        elif isinstance(held := getattr(adapter, "shared", None), nn.Module):
            found |= shared_view({key: held}, name)
    dict.update(out, found)
    # The reference's layers have an empty dictionary for what they could hold and do not.
    return out if out or any(name in a.reference_slots for a in adapters.values()) else None


def _of(adapter: Adapter, name: str) -> list[tuple[str, str]]:
    """The adapter's attributes that the reference's layers have below a name -> the rest of their names there."""
    disk = [(attribute, *d.partition(".")[::2]) for attribute, d in spelled(adapter).items()]
    mine = adapter.prefix and name.startswith(adapter.prefix)
    found = [(attribute, tail) for attribute, head, tail in disk if mine and head == name]
    # An embedding's factors are no modules, and have no bias beside them.
    return [place for place in found if not place[1]] or found


def _put(adapters: Mapping[str, Any], key: str, name: str, value: Any) -> None:
    adapter: Any = dict(adapters.items()).get(key)
    adapter = getattr(adapter, "shown", adapter)
    if adapter is not None and name in SETTABLE and name in adapter.reference_attributes:
        setattr(adapter, SETTABLE[name], value)
        return
    shared = getattr(adapter, "shared", None)
    if (
        isinstance(shared, nn.Module)
        and isinstance(value, Tensor)
        and name in {**shared._parameters, **shared._buffers}
    ):
        put_tensor(shared, name, value)
        return
    tensors = [] if adapter is None else _of(adapter, name)
    if not tensors or (tensors[0][1] and not isinstance(value, nn.Module)):
        raise ConfigError("this cannot be set on a layer", where=f"{name}[{key!r}]", got=type(value).__name__,
                          fix="give the config what it says and make a new adapter")  # fmt: skip
    for attribute, tail in tensors:
        new = getattr(value, tail, None) if tail else value
        if new is not None or getattr(adapter, attribute) is not None:
            put_tensor(adapter, attribute, new)


def spelled(adapter: Adapter) -> dict[str, str]:
    """An adapter's own parameters and buffers -> their names in the file, below those that the method gives."""
    own = {n: n for n in (*adapter._parameters, *adapter._buffers)}
    return own | {n: disk for n, disk in adapter.disk_names.items() if hasattr(adapter, n)}


def shared_view(shared: Mapping[str, nn.Module], name: str) -> dict[str, Any]:
    """Adapter name -> what all its layers share under a name: a tensor, or a module that holds several."""
    of_name = {k: getattr(m, name) for k, m in shared.items() if name in {**m._parameters, **m._buffers, **m._modules}}
    by_adapter = {k: v[k] if isinstance(v, nn.ModuleDict) and k in v else v for k, v in of_name.items()}
    return {k: v for k, v in by_adapter.items() if v is not None}
