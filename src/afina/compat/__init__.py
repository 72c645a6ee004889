"""The stand-in for `peft`: libraries that ask for 🤗 PEFT get afina, unchanged.

    import afina.compat
    afina.compat.stand_in()          # before transformers' trainer is imported
    from transformers import Trainer

or, without touching the script, `python -m afina.compat script.py ...`.
"""

from __future__ import annotations

import logging
import sys

from ..errors import AfinaError
from .finder import DistributionFinder
from .modules import TREE, StandIn, build

VERSION = "0.21.2"
"""The release that the stand-in answers for."""

_logger = logging.getLogger("afina")


class StandInError(AfinaError, RuntimeError):
    """The stand-in came too late: other libraries hold the real package, or decided that there is none."""


def is_standing_in() -> bool:
    """Whether the name `peft` means afina in this process."""
    return isinstance(sys.modules.get("peft"), StandIn)


def stand_in() -> None:
    """Make the name `peft` mean afina for the rest of this process.

    Safe to call twice. Nothing is written to disk, and an installed `peft` is left alone.

    Raises:
        StandInError: transformers' trainer or the real `peft` is already imported.
    """
    if is_standing_in():
        return
    late = [m for m in ("peft", "transformers.trainer", "transformers.trainer_utils", "trl") if m in sys.modules]
    if late:
        raise StandInError("too late to stand in for peft: it was already looked for", where=", ".join(late),
                           fix="call afina.compat.stand_in() before importing them")  # fmt: skip
    for name, module in build(VERSION).items():
        sys.modules[name] = module
    sys.meta_path.insert(0, DistributionFinder(VERSION))
    _forget_availability()
    _logger.info("afina stands in for peft %s in this process (%d modules)", VERSION, len(TREE))


def _forget_availability() -> None:
    """Libraries remember whether `peft` is there; ask them again."""
    utils = sys.modules.get("transformers.utils.import_utils")
    clear = getattr(getattr(utils, "is_peft_available", None), "cache_clear", None)
    if clear is not None:
        clear()


__all__ = ["StandInError", "is_standing_in", "stand_in"]
