"""Layer-wise learning-rate decay: layers further from the output learn more slowly.

    lr_d = lr · decay^(N + 1 - d),   d = 0 embeddings, 1 ... N blocks, N + 1 head

Howard and Ruder 2018, arXiv 1801.06146 (discriminative fine-tuning); Clark et al. 2020, arXiv 2003.10555 (this form).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from .core.hosts.host import Host
from .core.model.peft_model import PeftModel
from .errors import ConfigError


def layerwise_parameter_groups(
    model: nn.Module, lr: float, decay: float, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Optimizer groups of the trainable parameters, the fastest first.

    The depth d of a parameter follows from the model's stacks of blocks (`nn.ModuleList` or `nn.Sequential` of one
    type, the outermost ones), in the order in which the model defines its parts:

    - before the first stack (embeddings; a head that shares their weight too): d = 0
    - block i of all stacks, counted on from one stack to the next (encoder, then decoder): d = i, from 1 to N
    - between two stacks (the encoder's last norm): as the last block before
    - after the last stack (last norm, pooler, head): d = N + 1
    - an adapter, and a trained copy, as the layer that it sits on
    - parameters of no layer (virtual tokens, what all layers of an adapter share): d = N + 1

    Args:
        decay: factor from one depth to the one below it, in (0, 1]; 1 gives every parameter `lr`.
        weight_decay: of parameters with two and more dimensions; others (biases, norms) have none.

    Returns:
        One group for each depth and weight decay that occurs, with `params`, `lr`, `weight_decay` and `depth`.

    Raises:
        ConfigError: decay is out of range, nothing is trainable, or the model has no stack of blocks.
    """
    if not 0 < decay <= 1:
        raise ConfigError("out of range", where="decay", got=decay, expected="in (0, 1]")
    depths, top = _depths(model)
    groups: dict[tuple[int, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = depths.get(id(parameter), top), weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ConfigError("nothing is trainable", where=type(model).__name__)
    return [
        {"params": found, "lr": lr * decay ** (top - depth), "weight_decay": own, "depth": depth}
        for (depth, own), found in sorted(groups.items(), key=lambda item: (-item[0][0], -item[0][1]))
    ]


def _depths(model: nn.Module) -> tuple[dict[int, int], int]:
    """Depth by parameter's id, and the depth of the head."""
    root = model.get_base_model() if isinstance(model, PeftModel) else model
    stacks = dict(_stacks(root, _equal) or _stacks(root, _several))
    if not stacks:
        raise ConfigError("the model has no stack of blocks, so its layers have no depth", where=type(root).__name__,
                          fix="leave layer-wise decay out")  # fmt: skip
    top = 1 + sum(len(blocks) for blocks in stacks.values())
    depths: dict[int, int] = {}
    passed, left = 0, len(stacks)
    for name, module in _walk(root, stacks):
        if name in stacks:
            for block in stacks[name]:
                passed += 1
                depths |= {id(p): passed for p in block.parameters() if id(p) not in depths}
            left -= 1
        else:
            own = module.parameters(recurse=False)
            depths |= {id(p): passed if left else top for p in own if id(p) not in depths}
    return depths, top


def _walk(module: nn.Module, stacks: dict[str, list[nn.Module]], name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All modules in the order of their definition; stacks are not entered."""
    yield name, module
    if name not in stacks:
        for child_name, child in module.named_children():
            yield from _walk(child, stacks, f"{name}.{child_name}" if name else child_name)


def _stacks(module: nn.Module, is_stack: Any, name: str = "") -> list[tuple[str, list[nn.Module]]]:
    """(path, blocks) of the outermost stacks."""
    blocks = [b for b in module.children() if next(b.parameters(), None) is not None]
    if isinstance(module, (nn.ModuleList, nn.Sequential)) and is_stack(module, blocks):
        return [(name, blocks)]
    children = [(f"{name}.{n}" if name else n, child) for n, child in module.named_children()]
    return [found for n, child in children for found in _stacks(child, is_stack, n)]


def _equal(module: nn.Module, blocks: list[nn.Module]) -> bool:
    return len(blocks) > 1 and len({type(_bare(b)) for b in module.children()}) == 1


def _several(module: nn.Module, blocks: list[nn.Module]) -> bool:
    """The next best: a sequence of unlike layers, in a model without a stack of equal ones."""
    return len(blocks) > 1


def _bare(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, Host) else module
