"""Input and output embeddings in an adapter's file: saved when the vocabulary was resized, taken over when loading."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import AfinaWarning, CheckpointError, ConfigError
from ..files.jsonfile import read_json_object
from ..hosts.host import Host
from ..hosts.replacement import Replacement
from ..hosts.walk import outside_adapters
from ..layers.partitioned import shape_of
from ..layers.sharded import whole


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> plain embedding module, for the input and output embeddings of a transformers model."""
    wanted = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        call = getattr(model, getter, None)
        try:
            module = call() if callable(call) else None
        except NotImplementedError:
            module = None
        if isinstance(module, nn.Module):
            wanted.append(module)
    found = {n: m for n, m in outside_adapters(model, remove_duplicate=False) if any(m is w for w in wanted)}
    # A host below which the same layer stands again is the place that counts.
    return {n: m for n, m in found.items() if not n.endswith((".base_layer", ".original_module"))}


def _plain(module: nn.Module) -> Any:
    while isinstance(module, Host):
        module = module.base_layer
    return module


def layers(model: nn.Module) -> list[Any]:
    """The plain embedding layers."""
    return [_plain(m) for m in _layers(model).values()]


def refuse_adapted(model: nn.Module, size: int | None) -> None:
    """Refuse to resize a vocabulary whose embeddings carry an adapter, which is made for its size.

    Raises:
        ConfigError: names the place.
    """
    for name, module in _layers(model).items():
        rows = _plain(module).weight.shape[0]
        if isinstance(module, Host) and size is not None and size != rows:
            raise ConfigError("an adapter stands on these embeddings, made for their size", where=name, got=size,
                              expected=rows, fix="resize the base first, then put the adapter on it")  # fmt: skip


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The keys on disk under which embeddings may lie, with their shapes."""
    return {k: shape_of(_plain(m).weight) for n, m in _layers(model).items()
            for k in _keys(n) if isinstance(getattr(_plain(m), "weight", None), Tensor)}  # fmt: skip


def state(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """Key in the file of an adapter -> full embedding matrix, tied ones once."""
    out: dict[str, Tensor] = {}
    for name, module in _layers(model).items():
        weight = _plain(module).weight
        if not any(weight is t for t in out.values()):
            own = module.adapter(adapter) if isinstance(module, Host) else None
            # A copy is the place's own weight in the file; whoever else stands on it finds its layer below.
            out[_keys(name)[0 if own is None or isinstance(own, Replacement) else 1]] = weight
    return {n: whole(t) for n, t in out.items()}


def wanted(model: nn.Module, choice: bool | str) -> bool:
    """Whether to save embeddings: as told, or ("auto") if their vocabulary is not that of the base on disk."""
    if choice is not True and choice is not False and choice != "auto":
        raise ConfigError("not an option", where="save_embedding_layers", got=choice, expected='True, False or "auto"')
    if choice != "auto":
        return bool(choice)
    config = getattr(model, "config", None)
    now, before = getattr(config, "vocab_size", None), _base_vocabulary(model)
    return now is not None and before is not None and now != before


def _base_vocabulary(model: nn.Module) -> int | None:
    """The vocabulary's size in the base's own config, looked up without any network; None where it is unknown."""
    name = getattr(getattr(model, "config", None), "_name_or_path", None) or getattr(model, "name_or_path", None)
    if not name:
        return None
    path = Path(name) / "config.json"
    if not path.is_file():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(str(name), "config.json")
        except HFValidationError:
            return None
        if not isinstance(cached, str):
            return None
        path = Path(cached)
    value = read_json_object(path).get("vocab_size")
    return value if isinstance(value, int) else None


class Vocabulary:
    """A model's own embeddings, as they were before a file brought others: `restore` puts them back, to the bit."""

    def __init__(self, model: nn.Module) -> None:
        config = getattr(model, "config", None)
        self.size = getattr(config, "vocab_size", None)
        self.layers = {n: _plain(m) for n, m in _layers(model).items()}
        self.weights = {n: layer._parameters.get("weight") for n, layer in self.layers.items()}
        self.resized = False

    def fit(self, model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Resize the plain model's vocabulary to that of the embeddings in a file, before adapters are injected.

        Raises:
            CheckpointError: the file's embeddings cannot be this model's.
        """
        for name, layer in self.layers.items():
            have = getattr(layer, "weight", None)
            key = next((k for k in _keys(name) if k in shapes), None)
            if key is None or not isinstance(have, Tensor) or shapes[key] == shape_of(have):
                continue
            if shapes[key][1:] != shape_of(have)[1:] or not hasattr(model, "resize_token_embeddings"):
                raise CheckpointError("the file's embeddings do not fit the model", where=key, got=shapes[key],
                                      expected=tuple(have.shape))  # fmt: skip
            warnings.warn(f"vocabulary resized from {have.shape[0]} to {shapes[key][0]} tokens, as the adapter's "
                          "file says", AfinaWarning, stacklevel=3)  # fmt: skip
            self.resized = True
            model.resize_token_embeddings(shapes[key][0], mean_resizing=False)  # type: ignore[operator]
            return

    def differs(self, model: nn.Module) -> bool:
        """Whether the model has other embeddings now."""
        now = {n: _plain(m)._parameters.get("weight") for n, m in _layers(model).items()}
        return self.resized or any(now.get(n) is not weight for n, weight in self.weights.items())

    def restore(self, model: nn.Module) -> None:
        """Give the model its own embeddings back; its hosts have to be gone."""
        for name, layer in self.layers.items():
            layer._parameters["weight"] = self.weights[name]
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._modules[leaf] = layer
        if self.resized:
            model.config.vocab_size = self.size  # type: ignore[union-attr]


def is_resized(model: nn.Module, shapes: Iterable[tuple[int, ...]]) -> bool:
    """Whether embeddings of these shapes are of another vocabulary than the base's own on disk."""
    base = _base_vocabulary(model)
    return base is None or any(shape[0] != base for shape in shapes)


def take_over(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the embeddings of a file in the places of the model's own, whose parameters stay as they are.

    Raises:
        CheckpointError: a shape differs.
    """
    made: dict[int, nn.Parameter] = {}
    for name, module in _layers(model).items():
        key = next((k for k in _keys(name) if k in tensors), None)
        layer = _plain(module)
        if key is None:  # a head that shares the table
            if id(layer.weight) in made:
                layer._parameters["weight"] = made[id(layer.weight)]
            continue
        own, new = layer.weight, tensors[key]
        if own.shape != new.shape:
            raise CheckpointError("the file's embeddings do not fit the model", where=key, got=tuple(new.shape),
                                  expected=tuple(own.shape))  # fmt: skip
        if not torch.equal(own.detach().cpu(), new.to(own.dtype).cpu()):
            warnings.warn(f"{key}: the model's embeddings were replaced by those in the adapter's file", AfinaWarning,
                          stacklevel=4)  # fmt: skip
        made[id(own)] = nn.Parameter(new.to(own), requires_grad=False)
        layer._parameters["weight"] = made[id(own)]


def refuse_others(model: nn.Module, tensors: Mapping[str, Tensor], where: object) -> None:
    """Refuse a file that holds other embeddings than the model has.

    Raises:
        CheckpointError: names the tensor.
    """
    for name, module in _layers(model).items():
        weight = _plain(module).weight
        for key in (k for k in _keys(name) if k in tensors):
            if not torch.equal(weight.detach().cpu(), tensors[key].to(weight.dtype).cpu()):
                raise CheckpointError(
                    f"{key}: other embeddings than the model has", where=where,
                    got="no resized vocabulary, and no trained copy of them",
                    fix="train embeddings with modules_to_save, and give each such adapter a model of its own",
                )  # fmt: skip


def _keys(name: str) -> tuple[str, str]:
    """Under which keys a file may hold the embeddings of a place."""
    return f"{name}.weight", f"{name}.base_layer.weight"
