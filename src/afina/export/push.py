"""An export onto the hub, or what would go there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_repository(name: str) -> None:
    """Refuse what is no name on the hub.

    Raises:
        ConfigError: it is none.
    """
    if not _REPOSITORY.fullmatch(name):
        raise ConfigError("no name of a repository", where="--push", got=name, expected="OWNER/NAME")


def listed(folder: Path) -> list[tuple[str, int]]:
    """(name, bytes) of every file that goes to the hub."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [(p.relative_to(folder).as_posix(), p.stat().st_size) for p in files]


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a folder into a repository, which is made where it is missing; where it is then.

    Raises:
        CheckpointError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api: Any = HfApi()
    try:
        url = api.create_repo(repo_id=repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Adapter, exported with afina")
    except (HfHubHTTPError, OSError, *_connection_errors()) as error:
        raise CheckpointError("the hub did not take it", where=repository, got=str(error).strip().splitlines()[0],
                              fix=f"what was written is in {folder}; afina export --push again") from error  # fmt: skip
    return str(url)


def _connection_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises where there is no connection, by the library that it uses."""
    import importlib

    found = []
    for name in ("httpx", "httpx2"):
        try:
            found.append(importlib.import_module(name).HTTPError)
        except ModuleNotFoundError:
            continue
    return tuple(found)
