"""Standing in without being asked: from the first config on, unless AFINA_STAND_IN=0."""

from __future__ import annotations

import os
import warnings

from ..errors import AfinaWarning
from . import StandInError, is_standing_in, stand_in

VARIABLE = "AFINA_STAND_IN"


def begin() -> None:
    """Let the name `peft` mean afina, so that a script in which only its import line was changed runs as before.

    Where the real package is in use, this process goes on with it, and is told.
    """
    if os.environ.get(VARIABLE) == "0" or is_standing_in():
        return
    try:
        stand_in(say=True)
    except StandInError as error:
        warnings.warn(f"the real peft is in use here ({error.where}), so transformers and others go on with it; "
                      f"{VARIABLE}=0 says that this is meant", AfinaWarning, stacklevel=6)  # fmt: skip
