"""Layers alone with their updates: added, carried by their products, in one kernel; and rows with adapters of their
own, together and one group after the other. Each by the trial that chooses among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .page import why
from .rows import RANK, SHAPES, TINY

TOKENS, GROUPS, DTYPE = 4096, 8, torch.bfloat16


def ways(device: str, tiny: bool) -> list[dict[str, Any]]:
    """Milliseconds by way, of every set of layers that reads the same input, forward and backward; or why there are
    none."""
    from afina.kernels.updates.rows_trial import Case
    from afina.kernels.updates.wide_trial import Way

    out: list[dict[str, Any]] = []
    tokens, where = 64 if tiny else TOKENS, torch.device(device)
    for name, shape in SHAPES.items():
        for layers, outputs, inputs in _sets({**shape, **(TINY if tiny else {})}):
            told = {"layers": f"{name}: {layers}", "tokens": tokens}
            sizes = outputs, inputs, (RANK,) * len(outputs)
            found = [{"pass": side, **_updates(side, sizes, tokens, where)} for side in ("forward", "backward")]
            best = [min(one.get("ms", {"added": 0}).items(), key=lambda way: way[1])[0] for one in found]
            of_all = outputs, inputs, (RANK * GROUPS,) * len(outputs)
            found += _rows(Case(of_all, tokens, GROUPS, DTYPE, where, Way(*best)))
            out += [{**told, **one} for one in found]
    return out


def _updates(side: Any, sizes: Any, tokens: int, where: torch.device) -> dict[str, Any]:
    from afina.kernels.updates import wide_trial

    try:
        return {"ms": wide_trial.measured(side, sizes, tokens, DTYPE, where)}
    except Exception as error:  # what does not run leaves the others to be measured
        return {"why": why(error)}


def _rows(dense: Any) -> Iterator[dict[str, Any]]:
    """Rows with LoRA and DoRA, and with LoRA on layers in few bits."""
    from afina.kernels.updates import rows_trial
    from afina.kernels.updates.wide import ADDED

    kinds: dict[str, dict[str, Any]] = {"rows": {}, "rows of DoRA": {"magnified": True}}
    kinds |= {f"rows, {name}": {"kind": (name, 0.0), "way": ADDED} for name in ("nf4", "int8")}
    if dense.device.type == "cpu":
        del kinds["rows, nf4"]
        yield {"pass": "rows, nf4", "why": "bitsandbytes dequantises into a given tensor on GPUs only"}
    for name, how in kinds.items():
        for learns in (False, True):
            found: dict[str, Any] = {"pass": f"{name}, {'with backward' if learns else 'forward'}"}
            try:
                times = rows_trial.measured(dense._replace(**how), learns)
                yield {**found, "ms": dict(zip(("together", "one after the other"), times, strict=True))}
            except Exception as error:  # as above
                yield {**found, "why": why(error)}


def _sets(shape: dict[str, Any]) -> list[tuple[str, tuple[int, ...], int]]:
    """Layers that read the same input: their names, outputs and inputs."""
    width, wide, head = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    q, k = shape["num_attention_heads"] * head, shape["num_key_value_heads"] * head
    return [("q, k, v", (q, k, k), width), ("o", (width,), q), ("gate, up", (wide, wide), width),
            ("down", (width,), wide)]  # fmt: skip
