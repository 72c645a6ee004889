"""What models call the keys and values of earlier tokens: `past_key_values`, in transformers from 5.24 on `cache`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

NEW, OLD = "cache", "past_key_values"


def cache_name(run: Any) -> str:
    """The name that a model's method takes a cache by; if it only hands it on, that of transformers' outputs."""
    taken = inspect.signature(run).parameters
    if NEW in taken or OLD in taken:
        return NEW if NEW in taken else OLD
    from transformers.modeling_outputs import BaseModelOutputWithPast

    return NEW if hasattr(BaseModelOutputWithPast, NEW) else OLD


def given_cache(call: Mapping[str, Any]) -> Any:
    """The cache of a call by name, whichever name it has there; None without one."""
    return next((call[name] for name in (NEW, OLD) if call.get(name) is not None), None)


def cache_in(output: Any) -> dict[str, Any]:
    """The cache in a model's output, by the name that outputs have for it."""
    # The old name of a new output is a property that warns.
    return {NEW: getattr(output, NEW)} if hasattr(output, NEW) else {OLD: getattr(output, OLD, None)}


def cache_of(output: Any) -> Any:
    """The cache in a model's output; None without one."""
    return next(iter(cache_in(output).values()))
