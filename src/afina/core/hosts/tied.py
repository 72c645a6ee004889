"""An adapter on an output head that shares its weight with the input embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from .adapter import Adapter, Site


class Tied(Adapter):
    """On an output head: what another adapter does to the embedding that the head shares its weight with."""

    kinds = frozenset({"linear"})

    def __init__(self, site: Site, source: Adapter) -> None:
        super().__init__(site, None)
        # In a tuple, because the parameters belong to the embedding's adapter.
        self.sources = (source,)

    @property
    def dtype(self) -> torch.dtype:
        return self.sources[0].dtype

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.sources[0].merged(weight.T, None)[0].T, bias
