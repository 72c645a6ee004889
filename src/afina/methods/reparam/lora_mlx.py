"""Opens a folder that mlx-lm wrote: LoRA and DoRA with transposed factors, named without a wrapper's prefix.

There y = W x + scale (x A) B, with A (inputs, rank) and B (rank, outputs).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.disk.adapter_file import AdapterFile
from ...core.disk.held_file import HeldFile, header_of
from ...core.files.tensorfile import read_header, read_tensors
from ...errors import CheckpointError, ConfigError
from .lora_config import LoraConfig

WEIGHTS_NAME = "adapters.safetensors"
_KEY = re.compile(r"(?P<path>.+)\.(?P<leaf>lora_a|lora_b|m)")
_EMBEDDINGS = ("embed_tokens", "wte")
"""What tables of embeddings are called; their A has a row for every token."""


def open_mlx(
    values: Mapping[str, Any], config_path: Path, beside: Callable[[str], Path], allow_pickle: bool
) -> AdapterFile | None:
    """The adapter of a folder in mlx-lm's layout; None if `values` (its configuration) are not of that layout.

    Raises:
        ConfigError: whole weights were trained, or the configuration lacks what decides on the mathematics.
        CheckpointError: no weights, damaged ones, or such as are no factors of linear layers and embeddings.
    """
    settings = values.get("lora_parameters")
    if not isinstance(settings, Mapping):
        return None
    kind = values.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise ConfigError("mlx-lm trained no low-rank adapter", where=f"{config_path}: fine_tune_type", got=kind,
                          expected="lora or dora")  # fmt: skip
    scale = settings.get("scale")
    if not isinstance(scale, int | float) or isinstance(scale, bool) or scale <= 0:
        raise ConfigError("no scale of the update", where=f"{config_path}: lora_parameters.scale", got=scale,
                          expected="a positive number")  # fmt: skip
    path = beside(WEIGHTS_NAME)
    read_header(path)
    held, ranks = _renamed(read_tensors(path), path)
    (rank,) = ranks if len(ranks) == 1 else (None,)
    if rank is None:
        raise CheckpointError("layers of several ranks, which mlx-lm does not write", where=path, got=sorted(ranks))
    targets = sorted({name.rpartition(".lora_")[0].removeprefix("base_model.model.") for name in held})
    config = LoraConfig(
        r=rank, lora_alpha=scale * rank, lora_dropout=float(settings.get("dropout") or 0.0), use_dora=kind == "dora",
        target_modules=targets, task_type="CAUSAL_LM", inference_mode=True, base_model_name_or_path=values.get("model"),
    )  # fmt: skip
    return HeldFile(path, config, header_of(held), held=held)


def _renamed(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], set[int]]:
    """The tensors as the reference's layout has them, and the ranks that occur."""
    out: dict[str, Tensor] = {}
    ranks = set()
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name)
        if match is None or tensor.dim() != (1 if match["leaf"] == "m" else 2):
            raise CheckpointError("no factor of a linear layer or of embeddings", where=path,
                                  got=f"{name} {list(tensor.shape)}")  # fmt: skip
        table = match["path"].rpartition(".")[2] in _EMBEDDINGS
        leaf = {"m": "magnitude_vector", "lora_a": "embedding_A" if table else "A.weight",
                "lora_b": "embedding_B" if table else "B.weight"}[match["leaf"]]  # fmt: skip
        if match["leaf"] == "lora_a":
            ranks.add(tensor.shape[1])
        out[f"base_model.model.{match['path']}.lora_{leaf}"] = tensor if tensor.dim() == 1 else tensor.T.contiguous()
    return out, ranks
