"""Adapters on a model whose weights ZeRO-3 partitions: what is done once, before such a model first runs."""

from __future__ import annotations

from torch import nn

from ..hosts.host import hosts
from ..hosts.walk import outside_adapters
from ..layers.partitioned import engine_of, gather_with, is_partitioned, keep_whole
from ..layers.sharded import DIGESTS, digest, whole


class Settled:
    """Remembers which engine a model was made ready for."""

    def __init__(self) -> None:
        self.engine: object = None
        self.kept: list[nn.Parameter] = []

    def settle(self, model: nn.Module, base: nn.Module) -> None:
        """Keep a model's adapters whole in every process, and let what reads a base layer's weights have them gathered.

        Of a model that no engine partitions, or that is ready for its engine, nothing is changed. All processes have to
        call it.

        Args:
            base: what of the model has no adapters' parameters beside its hosts.
        """
        first = next(model.parameters(), None)
        if not is_partitioned(first) or (self.kept and engine_of(self.kept) is self.engine):
            return
        own = {p for _, module in outside_adapters(base) for p in module._parameters.values()}
        self.kept = [p for p in model.parameters() if p not in own]
        keep_whole(self.kept)
        self.engine = engine_of(self.kept)
        for _, host in hosts(base):
            gather_with(host, (p for p in host.get_base_layer()._parameters.values() if p in own))
        for _, module in outside_adapters(base):
            _remember(module)


def _remember(module: nn.Module) -> None:
    """Take the digests of a module's own parameters, one after the other, so that one process alone can save."""
    own = {n: p for n, p in module._parameters.items() if type(p) is nn.Parameter and p.is_floating_point()}
    if own and DIGESTS not in module.__dict__:
        module.__dict__[DIGESTS] = {n: digest(whole(p)) for n, p in own.items()}
