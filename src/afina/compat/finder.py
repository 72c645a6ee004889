"""Answers questions about the distribution `peft` (its version), as `importlib.metadata` asks them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution
from importlib.metadata import DistributionFinder as Base
from os import PathLike
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
