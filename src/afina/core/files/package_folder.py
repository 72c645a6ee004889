"""Where a package's files are, installed or fetched before; nothing is fetched here, whatever a file says."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path, PurePosixPath

from ...cache import cache_dir, sha256
from ...errors import ConfigError

REFERENCE = re.compile(r"(package|sdist):([A-Za-z0-9][A-Za-z0-9._-]*)(?:==([A-Za-z0-9.+!]+))?/(.+)")
"""`package:NAME[==VERSION]/path/inside`"""


def fetched_at(kind: str, name: str, version: str | None) -> Path:
    """The folder of the cache for a package that was or will be fetched."""
    return cache_dir() / "packages" / f"{kind}-{name}-{version or 'latest'}"


def converted_at(file: Path, digest: str) -> Path:
    """The folder of the cache for a converted GGUF model."""
    return cache_dir() / "models" / f"{file.stem}-{digest[:16]}"


def installed(name: str, version: str | None, inside: PurePosixPath) -> Path | None:
    """A path of an installed package; None where it is not installed, or as another version."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    path = Path(str(found.locate_file(str(inside))))
    return path if path.exists() and version in (None, found.version) else None


def in_parts(reference: str) -> list[str]:
    """The parts of a reference to a file that several packages share: `package:ONE/a.part1+package:TWO/a.part2`."""
    return re.split(r"\+(?=package:)", reference)


def model_folder(reference: str) -> str:
    """What transformers loads of a base that a config names: a package's folder, or what it says itself.

    Raises:
        ConfigError: the package is not here, or its GGUF model was not converted yet.
    """
    if not reference.startswith("package:"):
        return reference
    files = [_path(part) for part in in_parts(reference)]
    found = files[0]
    if all(file.is_file() for file in files):
        found = converted_at(found, sha256(*files))
    if not found.is_dir():
        raise ConfigError("the adapter's base is in a package that is not here", got=reference,
                          fix="afina predict or chat with it fetches the base once; or load it yourself")  # fmt: skip
    return str(found)


def _path(reference: str) -> Path:
    """Where a reference leads, whether or not it is there.

    Raises:
        ConfigError: it is malformed, or leads out of its package.
    """
    match = REFERENCE.fullmatch(reference)
    path = PurePosixPath(match[4] if match else "..")
    if match is None or path.is_absolute() or ".." in path.parts:
        raise ConfigError("a reference stays inside its package", got=reference)
    return installed(match[2], match[3], path) or fetched_at("package", match[2], match[3]) / "files" / path
