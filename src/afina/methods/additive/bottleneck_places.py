"""Where bottleneck adapters sit in the blocks of known architectures, and how they get hold of the residual stream.

`h` is a sublayer's output, `r` the stream that it is added to, LN the normalisation of the sum in models that normalise
there (post-norm). What the adapter does to `h` it does at the module that gives `h`; what comes after LN it does at LN,
whose input is `h + r`. Where it needs `r` alone, a companion on the module that `r` enters leaves it for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch import dtype as torch_dtype

from ...core.hosts.adapter import Activation, Site
from ...core.hosts.view import View
from ...core.inject.architectures import SUBLAYERS
from ...core.inject.slots import slots
from ...core.inject.targets import layer_number, sublayers
from ...core.layers.partitioned import shape_of
from ...errors import TargetError

if TYPE_CHECKING:
    from .bottleneck_config import BottleneckConfig

FLAGS = {"attention": "mh_adapter", "cross_attention": "cross_adapter", "feed_forward": "output_adapter"}
"""Kind of sublayer -> the configuration's field that asks for it."""


@dataclass(frozen=True)
class Place:
    """One sublayer of one block.

    Attributes:
        site: the module that holds the adapter.
        stream: the module whose input the adapter takes as `r`, or None where it needs no `r`.
        at_norm: the site is LN.
        hub: the place's name in AdapterHub's files.
        layer: the block's number, counted through encoder and decoder.
        dim: width of the stream.
        flag: the configuration's field that asks for this place.
    """

    site: str
    stream: str | None
    at_norm: bool
    hub: str
    layer: int
    dim: int
    flag: str


def find_places(model: nn.Module, config: BottleneckConfig) -> dict[str, Place]:
    """Every place of a model, by its site; empty where the architecture is not known."""
    parts = SUBLAYERS.get(str(getattr(getattr(model, "config", None), "model_type", None)), ())
    modules = {s.name: s.module for s in slots(model)} if parts else {}
    out: dict[str, Place] = {}
    layer = -1
    for block in (n for n in modules if n.rpartition(".")[2].isdigit()):
        own = [p for p in parts if f"{block}.{p.output}" in modules]
        layer += bool(own)
        for part in own:
            width = getattr(modules[f"{block}.{part.norm or part.stream}"], "weight", None)
            assert isinstance(width, Tensor)
            at_norm, needs = _kind(bool(part.norm), config)
            site = f"{block}.{part.norm if at_norm else part.output}"
            out[site] = Place(site, f"{block}.{part.stream}" if needs else None, at_norm, f"{block}.{part.hub}", layer,
                              math.prod(shape_of(width)), FLAGS[part.kind])  # fmt: skip
    return out


def _kind(post_norm: bool, config: BottleneckConfig) -> tuple[bool, bool]:
    """(whether the adapter sits on LN, whether it needs `r`)."""
    if config.placement == "parallel":
        return False, True
    before = config.rule("original_ln_before")
    if not before or not post_norm:
        return False, before
    return True, config.rule("original_ln_after") and config.residual_before_ln is not True


def wanted_places(model: nn.Module, config: BottleneckConfig) -> list[Place]:
    """The places that the configuration asks for."""
    left_out = config.leave_out or []
    return [p for p in find_places(model, config).values() if config.rule(p.flag) and p.layer not in left_out]


def default_targets(model: Any, config: BottleneckConfig) -> list[str]:
    """The sites that the configuration asks for; in unknown architectures the modules named like sublayers.

    Raises:
        TargetError: no sublayer is recognised.
    """
    if find_places(model, config):
        return [p.site for p in wanted_places(model, config)]
    attention, feed_forward = sublayers(model)
    found = (attention if config.rule("mh_adapter") else []) + (feed_forward if config.rule("output_adapter") else [])
    return [n for n in found if layer_number(f"{n}.") not in (config.leave_out or [])]


def idle_options(model: Any, config: BottleneckConfig, paths: Sequence[str]) -> Iterator[str]:
    """The flags, and the numbers of layers, that no adapted place has."""
    places = find_places(model, config)
    flags = {p.flag for p in places.values()} if places else {"mh_adapter", "output_adapter"}
    yield from (f"{f} (no such sublayer)" for f in FLAGS.values() if getattr(config, f) and f not in flags)
    numbers: set[int | None] = {p.layer for p in places.values()} or {
        layer_number(f"{n}.") for n, _ in model.named_modules()
    }
    yield from (f"leave_out: {n}" for n in config.leave_out or [] if n not in numbers)
    factors = config.reduction_factor if isinstance(config.reduction_factor, dict) else {}
    yield from (f"reduction_factor: {k!r}" for k in factors if k != "default" and k not in map(str, numbers))


class ResidualStream(Activation):
    """Leaves the module's input for the adapters that take it; has no parameters and changes nothing."""

    kinds = frozenset({"linear", "module"})

    def __init__(self, site: Site, config: BottleneckConfig) -> None:
        super().__init__(site, config)
        self.name, self.streams, self.own_dtype = site.name, config.streams, site.base.dtype

    @property
    def dtype(self) -> torch_dtype:
        return self.own_dtype

    def forward(self, inner: View, x: Any) -> Any:
        self.streams[self.name] = x
        return inner(x)


def take(streams: dict[str, Any], name: str | None) -> Tensor:
    """The stream that was left under a module's name.

    Raises:
        TargetError: the module did not run before the adapter.
    """
    found = None if name is None else streams.pop(name, None)
    if found is None:
        raise TargetError("the residual stream did not pass this module before the adapter ran", where=name)
    assert isinstance(found, Tensor)
    return found


def output_size(site: Site, of_input: bool = False) -> int:
    """The width of what a module gives (or takes), found from its layers.

    Raises:
        TargetError: it has no linear layer to tell.
    """
    base = site.base
    if base.kind != "module":
        return base.in_features if of_input else base.out_features
    linear = [m for m in base.module.modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
    if not linear:
        norm = getattr(base.module, "weight", None)
        if isinstance(norm, Tensor) and len(shape_of(norm)) == 1:
            return shape_of(norm)[0]
        raise TargetError("the module's width is not known", where=site.name, fix="adapt the layer inside it")
    chosen: Any = linear[0] if of_input else linear[-1]
    size = getattr(chosen, "in_features" if of_input else "out_features", None)
    return int(size if size is not None else (chosen.nx if of_input else chosen.nf))
