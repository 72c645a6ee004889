"""The methods: a file each, in the folders of the field's own taxonomy. Importing one registers it."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from types import ModuleType
from typing import Any

from ..core.config import PeftConfig

FAMILIES = ("baselines", "selective", "additive", "prompt", "reparam", "initialisers")


def modules() -> list[ModuleType]:
    """Every method file, imported."""
    found: list[ModuleType] = []
    for family in FAMILIES:
        if importlib.util.find_spec(f"{__name__}.{family}") is None:
            continue
        package = importlib.import_module(f"{__name__}.{family}")
        found.append(package)
        found += [
            importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)
        ]
    return found


def public_names() -> dict[str, Any]:
    """What the method files offer under the package's own name: configs, and what they list in `PUBLIC`."""
    out: dict[str, Any] = {}
    for module in modules():
        out |= {n: v for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, PeftConfig)}
        out |= {n: getattr(module, n) for n in getattr(module, "PUBLIC", ())}
    return out
