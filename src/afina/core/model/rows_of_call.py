"""The adapters that a call names for the rows of its batch: taken out of its arguments and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...errors import ConfigError, MergeError, NameTakenError, did_you_mean
from ..hosts.batch_rows import BASE, Rows
from ..hosts.host import hosts


def make_rows(names: Any, known: Mapping[str, Any]) -> Rows:
    """Check the names that a caller gave.

    Raises:
        NameTakenError: no adapter of that name is loaded.
        ConfigError: not a list of names.
    """
    if isinstance(names, str) or not names or not all(isinstance(n, str) for n in names):
        raise ConfigError("one adapter name for every row of the batch is needed", where="adapter_names", got=names)
    for name in names:
        if name != BASE and name not in known:
            raise NameTakenError("no adapter of this name is loaded", where="adapter_names", got=name,
                                 expected=", ".join([*known, BASE]), fix=did_you_mean(name, known))  # fmt: skip
    return Rows(tuple(names))


def take_rows(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rows | None:
    """Take `adapter_names` out of a call of a `PeftModel`.

    Raises:
        ConfigError: names and rows do not fit.
        NameTakenError: no adapter of that name is loaded.
        MergeError: an adapter is merged.
    """
    names = kwargs.pop("adapter_names", None)
    if names is None:
        return None
    rows = make_rows(names, model.peft_config)
    check_batch(rows, args, kwargs)
    merged = next((n for _, h in hosts(model) for n in h.merged), None)
    if merged is not None:
        raise MergeError("rows cannot choose while an adapter is merged", where="adapter_names", got=merged,
                         fix="call unmerge_adapter() first")  # fmt: skip
    return rows


def check_batch(rows: Rows, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse names that are not as many as the batch's rows."""
    given = [kwargs.get(k) for k in ("input_ids", "inputs_embeds", "inputs", "pixel_values", "input_features")]
    first = next((t for t in [*args[:1], *given] if isinstance(t, Tensor)), None)
    if first is not None and first.shape[0] != len(rows.names):
        raise ConfigError("as many names as rows are needed", where="adapter_names", got=len(rows.names),
                          expected=first.shape[0])  # fmt: skip
