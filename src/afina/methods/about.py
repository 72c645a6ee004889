"""What each registered method is, read from its own file: the one source of the tables in docs and command line."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, fields

from ..core.config import Method, methods
from ..core.hosts.adapter import Adapter
from . import FAMILIES

_PARAMETERS = ("experts", "parameter")  # which `target_parameters` of a config alone can name
_ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")


@dataclass(frozen=True)
class About:
    """One method.

    Attributes:
        name: as registered; a recipe takes it in any case.
        family: the folder of the taxonomy that it stands in.
        summary: the first line of its file.
        formula: the first formula of its file; empty where it needs none.
        papers: arXiv ids, the method's own first.
        layers: kinds of layer that it adapts; for virtual tokens where they go.
        mergeable: whether it has a merged form.
        learning_rate: its own default.
        config: name of its config class in `afina`.
    """

    name: str
    family: str
    summary: str
    formula: str
    papers: tuple[str, ...]
    layers: tuple[str, ...]
    mergeable: bool
    learning_rate: float
    config: str


def about_methods() -> list[About]:
    """Every registered method, by family and name."""
    order = {family.rstrip("s"): i for i, family in enumerate(FAMILIES)}
    found = [_about(name, method) for name, method in methods().items()]
    return sorted(found, key=lambda a: (order.get(a.family, len(order)), a.name))


def purpose(family: str) -> str:
    """What the methods of a family are for: from its folder."""
    package = next(f for f in FAMILIES if f.rstrip("s") == family)
    text = sys.modules[f"{__package__}.{package}"].__doc__ or ""
    return " ".join(text.partition("\n\n")[2].split())


def text_of(name: str) -> str:
    """All that a method's own file says of it."""
    return (sys.modules[methods()[name].implementation.__module__].__doc__ or "").strip()


def _about(name: str, method: Method) -> About:
    text = sys.modules[method.implementation.__module__].__doc__ or ""
    head, _, body = text.partition("\n\n")
    formula = body.split("\n\n")[0] if body.startswith("    ") else ""
    implementation = method.implementation
    takes_parameters = any(f.name == "target_parameters" for f in fields(method.config))
    if issubclass(implementation, Adapter):
        layers = tuple(sorted(k for k in implementation.kinds if k not in _PARAMETERS or takes_parameters))
        mergeable = implementation.merged is not Adapter.merged
    else:
        layers, mergeable = (str(getattr(implementation, "goes_into", "whole model")),), False
    return About(
        name,
        method.family,
        " ".join(head.split()),
        " ".join(formula.split()),
        tuple(dict.fromkeys(_ARXIV.findall(text))),
        layers,
        mergeable,
        method.config.default_learning_rate,
        method.config.__name__,
    )
