"""Layers alone with their updates: added, carried by their products, in one kernel; and rows with adapters of their
own, together and one group after the other. Each by the trial that chooses among them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch

from .rows import RANK, SHAPES, TINY

TOKENS, GROUPS = 4096, 8


def ways(device: str, tiny: bool) -> list[dict[str, Any]]:
    """Milliseconds by way, of every set of layers that reads the same input, forward and backward."""
    from afina.kernels.updates import rows_trial, wide_trial

    out: list[dict[str, Any]] = []
    where, dtype = torch.device(device), torch.bfloat16
    for name, shape in SHAPES.items():
        for layers, outputs, inputs in _sets({**shape, **(TINY if tiny else {})}):
            tokens = 64 if tiny else TOKENS
            sizes = outputs, inputs, (RANK,) * len(outputs)
            best = []
            for side in ("forward", "backward"):
                found = wide_trial.measured(side, sizes, tokens, dtype, where)
                best.append(min(found, key=lambda how, ms=found: ms[how]))
                out.append({"layers": f"{name}: {layers}", "tokens": tokens, "pass": side, "ms": found})
            of_all = outputs, inputs, (RANK * GROUPS,) * len(outputs)
            dense = rows_trial.Case(of_all, tokens, GROUPS, dtype, where, wide_trial.Way(*best))
            out += [{"layers": f"{name}: {layers}", "tokens": tokens, **one} for one in _rows(dense)]
    return out


def _rows(dense: Any) -> Iterator[dict[str, Any]]:
    """Rows with LoRA and DoRA, and with LoRA on layers in few bits."""
    from afina.kernels.updates import rows_trial
    from afina.kernels.updates.wide import ADDED

    kinds: dict[str, dict[str, Any]] = {"rows": {}, "rows of DoRA": {"magnified": True}}
    if importlib.util.find_spec("bitsandbytes") is not None:
        kinds |= {f"rows, {name}": {"kind": (name, 0.0), "way": ADDED} for name in ("nf4", "int8")}
    for name, how in kinds.items():
        for learns in (False, True):
            times = rows_trial.measured(dense._replace(**how), learns)
            named = dict(zip(("together", "one after the other"), times, strict=True))
            yield {"pass": f"{name}, {'with backward' if learns else 'forward'}", "ms": named}


def _sets(shape: dict[str, Any]) -> list[tuple[str, tuple[int, ...], int]]:
    """Layers that read the same input: their names, outputs and inputs."""
    width, wide, head = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    q, k = shape["num_attention_heads"] * head, shape["num_key_value_heads"] * head
    return [("q, k, v", (q, k, k), width), ("o", (width,), q), ("gate, up", (wide, wide), width),
            ("down", (width,), wide)]  # fmt: skip
