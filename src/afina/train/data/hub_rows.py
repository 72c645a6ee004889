"""Rows of data sets that the `datasets` library loads: from the hub, or a folder laid out as such a data set.

A source is `hub:OWNER/NAME[/CONFIG][@SPLIT]` or `hub:FOLDER[@SPLIT]`; the split is `train` unless it says otherwise,
and may be anything that `datasets` takes (`train[:10%]`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import DataError, RecipeError
from .rows import Rows

PREFIX = "hub:"
_SYNTAX = "hub:OWNER/NAME[/CONFIG][@SPLIT] or hub:FOLDER[@SPLIT]"


def parse(source: str) -> tuple[str, str | None, str]:
    """Name (or folder), config and split of a source.

    Raises:
        RecipeError: it is malformed.
    """
    name, _, split = source.removeprefix(PREFIX).partition("@")
    if name and Path(name).expanduser().is_dir():
        return str(Path(name).expanduser()), None, split or "train"
    parts = name.split("/")
    if not all(parts) or len(parts) > 3:
        raise RecipeError("malformed data set", got=source, expected=_SYNTAX)
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or "train"


def read_hub(source: str) -> Rows:
    """The rows; classes stored as numbers become their names.

    Raises:
        RecipeError: the source is malformed.
        DataError: there is no such data set, config or split, or it cannot be loaded.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    name, config, split = parse(source)
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        cause = error.__cause__ or error  # datasets tells the reason in the error below
        got = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]
        raise DataError("cannot load the data set", where=source, got=got, expected=_SYNTAX) from error
    for column, feature in found.features.items():
        if isinstance(
            feature, datasets.Image | datasets.Audio
        ):  # as they are stored: they are read where they are used
            found = found.cast_column(column, type(feature)(decode=False))
    values = [{key: _named(value, found.features[key]) for key, value in row.items()} for row in found]
    if not values:
        raise DataError("the data set has no rows", where=source)
    return Rows(Path(source), values, list(range(1, len(values) + 1)))


def _named(value: Any, feature: Any) -> Any:
    from datasets import ClassLabel, List

    if isinstance(feature, ClassLabel) and isinstance(value, int) and value >= 0:
        return feature.int2str(value)
    if isinstance(feature, List) and isinstance(value, list):
        return [_named(item, feature.feature) for item in value]
    return value
