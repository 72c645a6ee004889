"""Partial fine-tuning: train the last k layers (or any range of them), and leave the rest frozen.

    block_i' for i in the chosen layers, a trained copy of block_i

Howard and Ruder 2018, arXiv 1801.06146 (gradual unfreezing starts there); Lee, Tang, Lin 2019, arXiv 1911.03090 (how
many of the last layers suffice). Trainable: the parameters of the chosen blocks. Mergeable (the copies take the blocks'
places). Layers: the model's own stack of blocks, the longest `ModuleList` of equal modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ...core.config import LayerConfig, bounded, register
from ...core.hosts.replacement import Replacement
from ...core.inject.slots import slots
from ...errors import ConfigError, TargetError
from ..initialisers.gather import plain


@dataclass(kw_only=True)
class LastLayersConfig(LayerConfig):
    """Configuration of partial fine-tuning.

    Attributes:
        layers: how many of the last layers to train.
        layer_range: instead, the numbers of the first layer and of the one after the last, as Python counts.
    """

    layers: int = bounded(2, ge=1)
    layer_range: list[int] | None = None

    default_learning_rate: ClassVar[float] = 5e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer_range is not None and len(self.layer_range) != 2:
            raise ConfigError("needs two numbers", where="layer_range", got=self.layer_range, expected="[first, end]")

    def idle(self, model: Any, paths: Sequence[str]) -> Iterable[str]:
        if self.layer_range is not None:
            return []
        try:
            name, size = block_stack(model)
        except TargetError:  # the modules to train were named
            return []
        every = {*paths} == {f"{name}.{i}" for i in range(size)}
        return [f"layers: {self.layers} (the model has {size})"] if every and self.layers > size else []

    def own_targets(self, model: Any) -> list[str]:
        name, size = block_stack(model)
        first, end = self.layer_range or (max(0, size - self.layers), size)
        chosen = list(range(size))[slice(first, end)]
        if not chosen:
            raise TargetError("no layer lies in this range", where="layer_range", got=self.layer_range,
                              expected=f"within 0..{size}")  # fmt: skip
        return [f"{name}.{i}" for i in chosen]


def block_stack(model: nn.Module) -> tuple[str, int]:
    """(path, length) of the model's stack of blocks, whichever adapters are on them.

    Raises:
        TargetError: there is none.
    """
    lists = [(slot.name, plain(slot.module)) for slot in slots(model)]
    blocks = [(n, [plain(b) for b in m.children()]) for n, m in lists if isinstance(m, (nn.ModuleList, nn.Sequential))]
    stacks = [
        (n, len(found))
        for n, found in blocks
        if len(found) > 1 and len({type(b) for b in found}) == 1 and any(True for _ in found[0].children())
    ]
    if not stacks:
        raise TargetError("the model has no stack of equal layers", where="target_modules",
                          fix="name the modules to train in target_modules")  # fmt: skip
    # Of equally long stacks (encoder and decoder) the last one is nearest to the output.
    name, size = max(reversed(stacks), key=lambda item: item[1])
    return name, size


@register("LAST_LAYERS", LastLayersConfig)
class LastLayers(Replacement):
    """`copy`: the block itself, trained."""

    steady: ClassVar[bool] = True
    kinds = Replacement.kinds - {"attention"}  # its output projection would not be merged
