"""What of an adapter goes into a file that holds low-rank updates alone, or into the base's own weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.combine.low_rank_form import LowRankForm
from ..core.config import PeftConfig, method
from ..core.hosts.adapter import Adapter
from ..core.hosts.host import Host, hosts
from ..core.hosts.host_kinds import ModulesToSaveWrapper
from ..core.hosts.routing import routers
from ..core.inject.places import plain_path
from ..core.prompts.encoder import PromptEncoder
from ..errors import NotMergeable


@dataclass(frozen=True)
class Factor:
    """A linear layer's update ΔW = scaling · B A.

    Attributes:
        A: (rank, inputs).
        B: (outputs, rank).
    """

    A: Tensor
    B: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.A.shape[0]


_VIRTUAL = "virtual tokens are no change of the weights, and a merged model has no place for them"
_ACTS = "the method acts on inputs or outputs, which no merged weight can hold"


def class_fault(folder: Path) -> str | None:
    """Why an adapter cannot become a part of its base's weights, as far as its config alone tells; None where it may.

    Raises:
        ConfigError: the folder's config is none.
    """
    implementation = method(PeftConfig.from_pretrained(folder)).implementation
    if issubclass(implementation, PromptEncoder):
        return _VIRTUAL
    return _ACTS if issubclass(implementation, Adapter) and implementation.merged is Adapter.merged else None


def merge_fault(model: Any, name: str) -> str | None:
    """Why an adapter cannot become a part of the base's weights; None where it can, as far as its class tells."""
    if name in model.base_model.prompt_encoder:
        return _VIRTUAL
    if name in routers(model.base_model):
        return "the method decides anew for every input which weights apply, which no merged weight can hold"
    for path, host in hosts(model.get_base_model()):
        adapter = host.adapter(name)
        if adapter is not None and type(adapter).merged is Adapter.merged:
            return f"{plain_path(path)}: {_ACTS}"
    return None


def factors_of(model: Any, name: str, kinds: frozenset[str] = frozenset({"linear"})) -> dict[str, Factor]:
    """Module path -> the update there, for an adapter that is low-rank updates and nothing else.

    Args:
        kinds: of layers that may be adapted; factors of convolutions have the kernel's dimensions too.

    Raises:
        NotMergeable: it is more than that; where, and what.
    """
    fault = None
    if name in model.base_model.prompt_encoder:
        fault = "virtual tokens are no update of weights"
    elif name in routers(model.base_model):
        fault = "the method decides anew for every input which updates apply"
    if fault is not None:
        raise NotMergeable(fault, where=name)
    out = {plain_path(path): _factor(plain_path(path), host, name, kinds)
           for path, host in hosts(model.get_base_model()) if name in host.names()}  # fmt: skip
    if not out:
        raise NotMergeable("no layer's weights are updated", where=name)
    return out


def _factor(path: str, host: Host, name: str, kinds: frozenset[str]) -> Factor:
    adapter = host.adapter(name)
    if isinstance(host, ModulesToSaveWrapper):
        raise NotMergeable("a trained copy of a whole module is no low-rank update", where=path)
    if name in host.biases or adapter is None:
        raise NotMergeable("a trained bias is no low-rank update", where=path)
    if host.parameter is not None:
        raise NotMergeable("stacked experts and the like are no linear layer", where=f"{path}.{host.parameter}")
    if host.base.kind not in kinds:
        raise NotMergeable(f"the layer is not {' or '.join(sorted(kinds))}", where=path, got=host.base.kind)
    thin = adapter.thin() if isinstance(adapter, LowRankForm) and adapter.holds_any_update else None
    if thin is None:
        raise NotMergeable("the method changes the weight by more than a fixed low-rank product", where=path)
    A, B, scaling = thin
    return Factor(A.detach(), B.detach(), scaling)
