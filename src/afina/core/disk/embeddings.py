"""Input and output embeddings in an adapter's file: saved when the vocabulary was resized, taken over when loading."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import AfinaWarning, CheckpointError
from ..files.jsonfile import read_json_object
from ..hosts.host import Host
from ..hosts.walk import outside_adapters


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


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The keys on disk under which embeddings may lie, with their shapes."""
    return {f"{n}{middle}.weight": tuple(_plain(m).weight.shape) for n, m in _layers(model).items()
            for middle in ("", ".base_layer") if isinstance(getattr(_plain(m), "weight", None), Tensor)}  # fmt: skip


def state(model: nn.Module) -> dict[str, Tensor]:
    """Key -> full embedding matrix, tied ones once."""
    out: dict[str, Tensor] = {}
    for name, module in _layers(model).items():
        weight = _plain(module).weight
        if not any(weight is t for t in out.values()):
            out[f"{name}.weight"] = weight
    return out


def wanted(model: nn.Module, choice: bool | str) -> bool:
    """Whether to save embeddings: as told, or ("auto") if their vocabulary is not that of the base on disk."""
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


def fit(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Resize a plain model's vocabulary to that of the embeddings in a file, before adapters are injected."""
    for name, module in _layers(model).items():
        for key in (f"{name}.weight", f"{name}.base_layer.weight"):
            have = getattr(_plain(module), "weight", None)
            if key in shapes and isinstance(have, Tensor) and shapes[key] != tuple(have.shape):
                if shapes[key][1:] != tuple(have.shape[1:]) or not hasattr(model, "resize_token_embeddings"):
                    raise CheckpointError("the file's embeddings do not fit the model", where=key, got=shapes[key],
                                          expected=tuple(have.shape))  # fmt: skip
                warnings.warn(f"vocabulary resized from {have.shape[0]} to {shapes[key][0]} tokens, as the adapter's "
                              "file says", AfinaWarning, stacklevel=4)  # fmt: skip
                model.resize_token_embeddings(shapes[key][0], mean_resizing=False)  # type: ignore[operator]
                return


def apply(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Take over the embedding matrices of a file, if it has any."""
    for name, module in _layers(model).items():
        for key in (f"{name}.weight", f"{name}.base_layer.weight"):
            if key not in tensors:
                continue
            weight = _plain(module).weight
            if weight.shape != tensors[key].shape:
                raise CheckpointError("the file's embeddings do not fit the model", where=key,
                                      got=tuple(tensors[key].shape), expected=tuple(weight.shape))  # fmt: skip
            if not torch.equal(weight.detach().cpu(), tensors[key].to(weight.dtype).cpu()):
                warnings.warn(f"{key}: the model's embeddings were replaced by those in the adapter's file",
                              AfinaWarning, stacklevel=4)  # fmt: skip
                with torch.no_grad():
                    weight.copy_(tensors[key])
