"""Layers whose parents compute with their weights instead of calling them: their hosts have to give the changed weight.

State-space and linear-attention mixers do so with convolutions and small projections, some only in one of the ways in
which they run (with fast kernels, with a cache), so that no trial call would show it. Their code says it.
"""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any

from torch import nn

# Asking for a kind, dtype or shape reads no number.
_READ = re.compile(r"(?<!isinstance\()\bself\.(\w+)\.(?:weight|bias)\b(?!\.(?:dtype|device|shape|size|ndim))")


def is_read(parent: nn.Module, attribute: str) -> bool:
    """Whether the code of a layer's parent reads the layer's weight or bias."""
    kind: Any = type(parent)
    return isinstance(parent, nn.MultiheadAttention) or attribute in _read_by(kind)


@functools.lru_cache(maxsize=1000)
def _read_by(kind: Any) -> frozenset[str]:
    # What whole models read are heads and embeddings, which they tie.
    if kind.__module__.startswith("torch.") or hasattr(kind, "get_input_embeddings"):
        return frozenset()
    found: set[str] = set()
    for name, value in vars(kind).items():
        if name == "__init__" or name.startswith(("_init", "reset_", "init_")) or not inspect.isfunction(value):
            continue
        try:
            found |= set(_READ.findall(inspect.getsource(value)))
        except (OSError, TypeError):  # it has no source
            continue
    above = [b for b in kind.__bases__ if issubclass(b, nn.Module) and b is not nn.Module]
    return frozenset(found.union(*(_read_by(base) for base in above)))
