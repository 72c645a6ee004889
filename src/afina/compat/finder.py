"""Answers what the import system asks about `peft`: its distribution's version, and its modules under afina's name."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution
from importlib.metadata import DistributionFinder as Base
from os import PathLike
from types import ModuleType
from typing import Any


class _StandInDistribution(Distribution):
    """A distribution that exists in memory only."""

    def __init__(self, version: str) -> None:
        self._version = version

    def read_text(self, filename: str) -> str | None:
        if filename in ("METADATA", "PKG-INFO"):
            return f"Metadata-Version: 2.1\nName: peft\nVersion: {self._version}\nSummary: afina standing in for peft\n"
        return None

    def locate_file(self, path: str | PathLike[str]) -> Any:
        raise FileNotFoundError(f"{path}: the stand-in has no files")


class DistributionFinder(Base):
    """Finds the distribution `peft`, and nothing else."""

    def __init__(self, version: str) -> None:
        self._distribution = _StandInDistribution(version)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None

    def find_distributions(self, context: Base.Context | None = None) -> Iterable[Distribution]:
        name = None if context is None else context.name
        return [self._distribution] if name is not None and name.lower() == "peft" else []


class ModuleFinder(MetaPathFinder, Loader):
    """Finds `afina.utils`, `afina.tuners.lora.layer`, ...: the reference's modules, for scripts that only put afina's
    name into their import lines. It comes last: afina's own modules are found before it."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        root, _, rest = fullname.partition(".")
        if root != "afina":
            return None
        from .modules import TREE

        return ModuleSpec(fullname, self, origin="afina.compat", is_package=True) if f"peft.{rest}" in TREE else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        from .modules import VERSION, stand_in_module

        return stand_in_module(spec.name, VERSION, lambda: None)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: names are looked up when they are used."""
