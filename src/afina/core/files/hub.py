"""Where a file of an adapter lies: in a local folder, or on the hub. A local path never causes network traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import CheckpointError

_HUB_ARGUMENTS = ("revision", "cache_dir", "token", "force_download", "local_files_only")


def _is_inside(file: Path, folder: Path) -> bool:
    """Whether a file lies in a folder, or where the hub's cache keeps the files of such a folder."""
    snapshots = next((p for p in folder.parents if p.name == "snapshots"), None)
    blobs = [] if snapshots is None else [snapshots.parent / "blobs"]
    return any(file.is_relative_to(root) for root in (folder, *blobs))


def _in_folder(folder: Path, filename: str, subfolder: str | None) -> Path:
    path = (folder / subfolder / filename) if subfolder else folder / filename
    if subfolder and not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError("the subfolder leads out of the folder", where=folder, got=subfolder)
    if not _is_inside(path.resolve(), folder.resolve()):
        raise CheckpointError("the file is a link that leads out of the folder", where=path)
    if not path.is_file():
        raise CheckpointError(f"there is no {filename} here", where=path.parent,
                              fix="is this the folder that save_pretrained wrote?")  # fmt: skip
    return path


def locate(source: str | Path, filename: str, *, subfolder: str | None = None, **kwargs: Any) -> Path:
    """The local path of `filename` in a folder or hub repository.

    Args:
        source: folder, or hub id `owner/name`.
        subfolder: folder inside it; must stay inside.
        **kwargs: `revision`, `cache_dir`, `token`, `force_download`, `local_files_only` go to the hub.

    Raises:
        CheckpointError: the file is not there, or `subfolder` leaves the folder.
    """
    folder = Path(source)
    try:
        if folder.is_dir():
            return _in_folder(folder, filename, subfolder)
    except (OSError, RuntimeError) as error:  # too long a name, links in a circle, no permission
        raise CheckpointError(f"cannot be opened ({getattr(error, 'strerror', None) or 'links in a circle'})",
                              where=folder / filename) from None  # fmt: skip
    if folder.is_absolute() or str(source).startswith((".", "~")) or str(source).count("/") > 1:
        raise CheckpointError("no such folder", where=source)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    options = {k: v for k, v in kwargs.items() if k in _HUB_ARGUMENTS and v is not None}
    try:
        return Path(hf_hub_download(str(source), filename, subfolder=subfolder, **options))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"neither a local folder nor reachable on the hub ({type(error).__name__})",
            where=f"{source}/{filename}", fix="check the path, or the id and your connection",
        ) from error  # fmt: skip
