"""The stand-in for `peft`: libraries that ask for 🤗 PEFT get afina, unchanged.

It begins by itself when a script makes its first config of afina, whatever was imported before, and says so when a
library first asks for it; `AFINA_STAND_IN=0` keeps it away. To begin earlier, for scripts that import `peft`:

    import afina.compat
    afina.compat.stand_in()

or, without touching the script, `python -m afina.compat script.py ...`.
"""

from __future__ import annotations

import logging
import sys

from ..errors import AfinaError
from .finder import DistributionFinder
from .modules import VERSION, StandIn, build
from .rebinding import real_peft, rebind, users

_logger = logging.getLogger("afina.compat")


class StandInError(AfinaError, RuntimeError):
    """The real package is in use in this process."""


def is_standing_in() -> bool:
    """Whether the name `peft` means afina in this process."""
    return isinstance(sys.modules.get("peft"), StandIn)


def stand_in(say: bool = False) -> None:
    """Make the name `peft` mean afina for the rest of this process, also in libraries that looked for it before.

    Safe to call twice. Nothing is written to disk, and an installed `peft` is left alone.

    Args:
        say: log one line when a library first asks for `peft`.

    Raises:
        StandInError: the real `peft` is in use: the user's own code imported it, or a library made something with it.
    """
    if is_standing_in():
        return
    if using := users():
        raise StandInError("too late to stand in for peft: the real one is in use", where=", ".join(using[:4]),
                           fix="import peft's names from afina, or call afina.compat.stand_in() first")  # fmt: skip
    real = real_peft()
    for name in real:
        del sys.modules[name]
    sys.modules.update(build(VERSION, _say if say else None))
    sys.meta_path.insert(0, DistributionFinder(VERSION))
    left = rebind(real, VERSION)
    if left:
        _logger.warning("these names stay peft's own, because afina has none such: %s", ", ".join(left))


def _say() -> None:
    _logger.warning("afina stands in for peft %s in this process (AFINA_STAND_IN=0 switches this off)", VERSION)


__all__ = ["VERSION", "StandInError", "is_standing_in", "stand_in"]
