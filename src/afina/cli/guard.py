"""How a command ends: every error becomes an exit code."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from types import MappingProxyType
from typing import ParamSpec, TypeVar

import typer

from ..core.files.unwritable import shortened
from ..errors import AfinaError, StoppedError
from ..train.report.interrupts import Interrupted, interruptible

_P = ParamSpec("_P")
_R = TypeVar("_R")
_EXTRAS = MappingProxyType(
    {
        **dict.fromkeys(("datasets", "gguf", "matplotlib", "pydantic", "rich", "tensorboard", "trl", "yaml"), "train"),
        "optuna": "sweep",
        **dict.fromkeys(("onnx", "onnxscript"), "export"),
    }
)
"""Packages that only some commands need, and the extra that brings them."""

_DISK = MappingProxyType(
    {
        **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room, or choose another disk"),
        **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP), "choose another name"),
        **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose another place, or mend its rights"),
    }
)
"""What the system says of files that cannot be written or read, and what to do then."""


def guarded(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """End the user's mistakes with exit code 2, signals with 128 + their number; all else is a bug and goes its way."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            with interruptible():
                return command(*args, **kwargs)
        except StoppedError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(error.exit_code) from error
        except AfinaError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error
        except OSError as error:
            fix = _DISK.get(error.errno or 0)
            if fix is None:
                raise
            where = f"{shortened(error.filename)}: " if error.filename else ""
            typer.echo(f"error: {where}{error.strerror}\nfix: {fix}", err=True)
            raise typer.Exit(2) from error
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").split(".")[0])
            if extra is None:
                raise
            typer.echo(f"error: the package {error.name} is missing\nfix: pip install 'afina[{extra}]'", err=True)
            raise typer.Exit(2) from error
        except Interrupted as error:
            typer.echo(f"stopped by {error.name}", err=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            typer.echo("stopped", err=True)
            raise typer.Exit(130) from error

    return run
