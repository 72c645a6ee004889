"""LoRA of diffusion models in the files that kohya's scripts, ComfyUI and diffusers exchange, in both directions.

One file for the UNet or transformer and the text encoders, with an alpha for each layer (kohya) or none (diffusers).
A layer of the file that the models do not have is an error, so that no file loads as nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.files.jsonfile import publish
from ..core.files.tensorfile import to_bytes
from ..core.hosts.host import hosts
from ..core.inject.places import plain_path
from ..core.inject.slots import plain_module, slots
from ..core.model.mapping import get_peft_model
from ..core.model.peft_model import PeftModel
from ..errors import CheckpointError, ConfigError, NumericError, nearest_to_all
from ..methods.reparam.lora_config import LoraConfig
from .diffusion_names import PREFIXES, attended, clip_name, original_name, table
from .factors import Factor, factors_of

KINDS = frozenset({"linear", "conv"})
_DOWN = ("lora_down.weight", "lora_A.weight", "lora.down.weight", "lora_linear_layer.down.weight")
_UP = ("lora_up.weight", "lora_B.weight", "lora.up.weight", "lora_linear_layer.up.weight")


@dataclass
class _Update:
    """A layer's factors as they lie in the file; `alpha` None: as the rank."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """Rows of the first factor."""
        return 0 if self.down is None else self.down.shape[0]


def save(
    file: str | os.PathLike[str], parts: Mapping[str, PeftModel], adapter_name: str = "default", *,
    layout: str = "kohya", original: bool = False,
) -> None:  # fmt: skip
    """Write the LoRA of a pipeline's models into one file.

    Args:
        file: the safetensors file.
        parts: "unet" or "transformer", "text_encoder", "text_encoder_2", "text_encoder_3" -> the adapted model.
        adapter_name: the adapter's name in all of them.
        layout: "kohya" (which ComfyUI reads) or "diffusers".
        original: name the UNet's layers as the original implementation does, as kohya's scripts do for SDXL.

    Raises:
        NotMergeable: an adapter is more than low-rank updates of linear layers and convolutions.
        ConfigError: a part or layout of this name is not known.
        NumericError: a tensor is not finite.
    """
    _check_known(parts, layout)
    write(file, {part: (model.get_base_model(), factors_of(model, adapter_name, KINDS))
                 for part, model in parts.items()}, layout=layout, original=original)  # fmt: skip


def write(
    file: str | os.PathLike[str], parts: Mapping[str, tuple[nn.Module, Mapping[str, Factor]]], *,
    layout: str = "kohya", original: bool = False,
) -> None:  # fmt: skip
    """As `save`, of each part's model with the updates at its paths.

    Raises:
        ConfigError, NumericError: as `save`.
    """
    _check_known(parts, layout)
    tensors: dict[str, Tensor] = {}
    for part, (model, factors) in parts.items():
        with_attention = attended(_layers(model))
        for path, factor in factors.items():
            if layout == "diffusers":  # there alpha is the rank
                tensors[f"{part}.{path}.lora_A.weight"] = factor.A.contiguous()
                tensors[f"{part}.{path}.lora_B.weight"] = (factor.scaling * factor.B).contiguous()
                continue
            prefix = PREFIXES[part][-1 if "text_encoder_2" in parts else 0]
            known = clip_name(path) if part.startswith("text_encoder") else path
            known = original_name(path, with_attention) if original and part == "unet" else known
            name = f"{prefix}_{known.replace('.', '_')}"
            tensors[f"{name}.lora_down.weight"] = factor.A.contiguous()
            tensors[f"{name}.lora_up.weight"] = factor.B.contiguous()
            tensors[f"{name}.alpha"] = torch.tensor(factor.scaling * factor.rank)
    target = Path(file)
    publish(target.parent, {target.name: to_bytes(tensors, {"format": "pt"})})


def _check_known(parts: Iterable[str], layout: str) -> None:
    if layout not in ("kohya", "diffusers"):
        raise ConfigError("no such layout", where="layout", got=layout, expected="kohya or diffusers")
    other = next((part for part in parts if part not in PREFIXES), None)
    if other is not None:
        raise ConfigError("no such part of a pipeline", where=other, expected=", ".join(PREFIXES))


def load(
    file: str | os.PathLike[str], parts: Mapping[str, nn.Module], adapter_name: str = "default"
) -> dict[str, PeftModel]:
    """Put the LoRA of such a file, in either layout, on a pipeline's models.

    Args:
        file: the safetensors file.
        parts: as for `save`, the plain models or `PeftModel`s.
        adapter_name: its name in all of them.

    Returns:
        Part -> its `PeftModel`; those that the file says nothing of are left out.

    Raises:
        CheckpointError: the file has a layer that the models lack, half a pair, another shape, or no LoRA at all;
            nothing was changed.
        NumericError: a tensor is not finite.
    """
    from safetensors.torch import load_file

    found = _read(load_file(file), parts, Path(file))
    for part, updates in found.items():
        for path, update in updates.items():
            _check(parts[part], path, update, Path(file))
    return {part: _put(parts[part], updates, adapter_name) for part, updates in found.items()}


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> layer, of those that LoRA can be put on."""
    found = {slot.name: plain_module(slot.module) for slot in slots(model)}
    return {n: m for n, m in found.items() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))}


def _plain(model: nn.Module) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _read(tensors: Mapping[str, Tensor], parts: Mapping[str, nn.Module], file: Path) -> dict[str, dict[str, _Update]]:
    """Part -> path -> what the file has for it.

    Raises:
        CheckpointError: it is for no layer, or no LoRA.
    """
    names: dict[str, tuple[str, str]] = {}
    for part, model in parts.items():
        layers = list(_layers(_plain(model)))
        names |= {name: (part, path) for name, path in table(part, layers).items()}
        names |= {f"{part}.{name}": (part, path) for path in layers for name in (path, clip_name(path))}
    out: dict[str, dict[str, _Update]] = {}
    unknown = []
    for key, tensor in tensors.items():
        name, kind = _split(key)
        if kind is None:
            raise CheckpointError("the file holds something other than LoRA's factors", where=file, got=key,
                                  expected="lora_down and lora_up, or lora_A and lora_B")  # fmt: skip
        if name not in names:
            unknown.append(name)
            continue
        part, path = names[name]
        update = out.setdefault(part, {}).setdefault(path, _Update())
        setattr(update, kind, float(tensor) if kind == "alpha" else tensor)
    if unknown or not out:
        raise CheckpointError(f"{len(set(unknown))} layers of the file are in none of the models" if unknown else
                              "the file holds nothing", where=file, got=", ".join(sorted(set(unknown))[:3]) or None,
                              fix=nearest_to_all(sorted(set(unknown)), names, 1) if unknown else None)  # fmt: skip
    return out


def _split(key: str) -> tuple[str, str | None]:
    """(layer's name, "down", "up" or "alpha"); None where it is something else."""
    for kind, ends in (("down", _DOWN), ("up", _UP), ("alpha", ("alpha",))):
        for end in ends:
            if key.endswith(f".{end}"):
                return key.removesuffix(f".{end}"), kind
    return key, None


def _check(model: nn.Module, path: str, update: _Update, file: Path) -> None:
    weight: Any = _layers(_plain(model))[path].weight
    if update.down is None or update.up is None:
        raise CheckpointError("only one of the two factors is there", where=f"{file}: {path}")
    rank = update.down.shape[0]
    if update.down[0].numel() != weight[0].numel() or update.up.numel() != weight.shape[0] * rank:
        raise CheckpointError("the factors do not fit the layer", where=f"{file}: {path}",
                              got=f"{tuple(update.down.shape)} and {tuple(update.up.shape)}",
                              expected=f"a weight of {tuple(weight.shape)}")  # fmt: skip
    for tensor in (update.down, update.up):
        if not torch.isfinite(tensor).all():
            raise NumericError("a factor is not finite", where=f"{file}: {path}")


def _put(model: nn.Module, updates: Mapping[str, _Update], name: str) -> PeftModel:
    """One rank and one scaling for all layers, smaller ranks filled up with zeros: patterns by layer would be matched
    layer by layer, and a UNet has hundreds."""
    scalings = {path: 1.0 if u.alpha is None else u.alpha / u.rank for path, u in updates.items()}
    rank = max(u.rank for u in updates.values())
    common = Counter(scalings.values()).most_common(1)[0][0] or 1.0
    config = LoraConfig(r=rank, lora_alpha=common * rank, target_modules=sorted(updates))
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        out = model
    else:
        out = get_peft_model(model, config, name)
    for path, host in hosts(out.get_base_model()):
        adapter: Any = host.adapter(name)
        if adapter is not None:
            update, ratio = updates[plain_path(path)], scalings[plain_path(path)] / common
            A = adapter.lora_A.new_zeros(adapter.lora_A.shape)
            B = adapter.lora_B.new_zeros(adapter.lora_B.shape)
            assert update.down is not None
            assert update.up is not None
            A[: update.rank] = update.down.reshape(update.rank, *A.shape[1:])
            B[:, : update.rank] = update.up.reshape(len(B), update.rank, *B.shape[2:]) * ratio
            adapter.assign({"lora_A": A, "lora_B": B})
    return out
