"""LoRA where each row of a batch goes through an adapter of its own: the updates of all in their layer's product."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ...core.hosts.calls import Call
from ...core.hosts.host import Host
from ...kernels.cuda.eight_bits import Stored8
from ...kernels.updates.joint import Layer
from ...kernels.updates.row_columns import RowColumns, magnified
from ...kernels.updates.wide import read
from .lora_fast import LoraFast, frozen_weight, updated


class LoraByRows(LoraFast):
    """`LoraFast` for batches whose rows have adapters of their own."""

    def all_rows(self, host: Host, call: Call, x: Tensor) -> Tensor | None:
        """The layer's output for rows with adapters of their own, where it is made at once."""
        if host.beside is None or not host.beside.takes_rows(x):
            return None
        made: Tensor | None = host.beside.output(host, x, partial(_of_rows, call))
        return None if made is None else _magnified(host, call, made)


def _of_rows(call: Call, host: Host, x: Tensor) -> Layer | None:
    """What a host is where each row goes through its own adapter: the layer with the updates of all."""
    assert call.rows is not None
    there = {name: host.adapter(name) for name in call.rows.groups}
    plain = [a for a in there.values() if isinstance(a, LoraFast) and (a.adds or a.magnifies) and a.lora_bias is None]
    if not plain or len(plain) < sum(a is not None for a in there.values()) or any(n in host.biases for n in there):
        return None
    found = updated(host, x, plain)
    if found is None:
        return None
    found = found._replace(rows=_columns(call, host, x))
    if not any(a.magnifies for a in plain):
        return found
    weight = found.weight
    if isinstance(weight, Stored8):  # magnitudes are of products with inputs as they are, all others of rounded ones
        if not all(isinstance(a, LoraFast) and a.magnifies for a in there.values()):
            return None
        weight = weight._replace(rounds=False)
    return found._replace(weight=weight, magnified=True, bias=None)


def _columns(call: Call, host: Host, x: Tensor) -> RowColumns:
    """Which rows go through which columns, found once for all layers of a call with the same adapters and ranks."""
    assert call.rows is not None
    there = ((name, host.adapter(name)) for name in call.rows.groups)
    ranks = [(name, len(a.factors()[0])) for name, a in there if isinstance(a, LoraFast)]
    key = "row columns", tuple(ranks), x.device
    if key not in call.notes:
        groups = [(call.rows.groups[name], rank) for name, rank in ranks]
        call.notes[key] = RowColumns(len(call.rows.names), groups, x.device)
    found: RowColumns = call.notes[key]
    return found


def _magnified(host: Host, call: Call, made: Tensor) -> Tensor:
    """What was made of rows, times the magnitudes of those whose adapters have any, with the bias that waited."""
    assert call.rows is not None
    there = [a for name in call.rows.groups if isinstance(a := host.adapter(name), LoraFast)]
    base = host.base
    if not any(a.magnifies for a in there) or (weight := frozen_weight(base, made)) is None:
        return made
    with read(weight, made.dtype) as dense:
        magnitudes = [a.magnitudes(dense, base.weight) if a.magnifies else None for a in there]
    out = magnified(made, magnitudes, _columns(call, host, made))
    return out if base.bias is None else out + base.bias.to(out.dtype)
