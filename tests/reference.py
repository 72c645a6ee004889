"""What the libraries that are installed cannot do with each other, or here."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

_VERSION = tuple(map(int, importlib.metadata.version("peft").split(".")[:2]))
KNOWS_CACHES = not hasattr(BaseModelOutputWithPast, "cache") or _VERSION >= (0, 22)
knows_caches = pytest.mark.skipif(
    not KNOWS_CACHES,
    reason="transformers calls caches `cache` since 5.24, which this release of peft does not know",
)
"""Marks comparisons with the reference's own caches, generation, and adapters that transformers puts on by itself."""

cuts_here = pytest.mark.skipif(
    torch.accelerator.current_accelerator() is not None and not torch.accelerator.is_available(),
    reason="torch is built for a device that is not here, over which transformers would cut models",
)
"""Marks runs on a base that is cut over processes."""
