"""What the process says when an error reaches its top: then it is ours."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType


def report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What `sys.excepthook` does with an error that no one expected; Python then exits with code 1."""
    traceback.print_exception(kind, error, trace, file=sys.stderr)
    if not issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("this is a bug in afina: please report the lines above\n")
