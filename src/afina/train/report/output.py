"""The output folder: claimed before a run, replaced only by a finished one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import RecipeError
from ...version import __version__
from .checkpoints import newest_complete

_MARK = "afina_run.json"
RECIPE_NAME, REPORT = "recipe.yaml", "report.json"
"""Of the run's settings; and written last: a folder that has it holds a finished run."""


@dataclass
class Output:
    """Where a run writes (`work`) and where the result belongs (`final`); they differ when a former run is replaced.

    Attributes:
        checkpoint: the checkpoint to go on from, or None.
    """

    final: Path
    work: Path
    checkpoint: Path | None
    lock: Any

    def publish(self) -> None:
        """Put a finished run in its place; only now is the former one given up."""
        self.lock.release()
        (self.work / ".lock").unlink(missing_ok=True)
        if self.work == self.final:
            return
        former = self.final.with_name(f".{self.final.name}.former")
        shutil.rmtree(former, ignore_errors=True)
        self.final.rename(former)
        self.work.rename(self.final)
        shutil.rmtree(former)
        self.work = self.final

    def abandon(self) -> None:
        """Give up a failed run: what can be resumed stays, the rest goes."""
        self.lock.release()
        (self.work / ".lock").unlink(missing_ok=True)
        if newest_complete(self.work) is None:
            shutil.rmtree(self.work, ignore_errors=True)


def claim(directory: str, *, overwrite: bool, resume: bool) -> Output:
    """Take the output folder for one run.

    Raises:
        RecipeError: it holds something that the flags do not allow to replace, cannot be written, is in use by
            another run, or has nothing to resume.
    """
    final = Path(directory).expanduser().absolute()
    if final.exists() and not final.is_dir():
        raise RecipeError("the output is a file", where="output.dir", got=final)
    filled = final.is_dir() and any(final.iterdir())
    if filled and not (final / _MARK).is_file():
        raise RecipeError(
            "the output folder holds something that is not a run of afina",
            where="output.dir",
            got=final,
            fix="choose another output.dir",
        )
    if filled and resume and not overwrite and (final / REPORT).is_file():
        raise RecipeError(
            "the run is finished, there is nothing to resume",
            where="output.dir",
            got=final,
            fix="--overwrite to run anew, or --overwrite --resume to go on with such a run that was cut off",
        )
    work = final.with_name(f"{final.name}.partial") if filled and overwrite else final
    if filled and not overwrite and not resume:
        raise RecipeError(
            "the output folder holds a former run",
            where="output.dir",
            got=final,
            fix="choose another output.dir, or --overwrite, or --resume if it was cut off",
        )
    return _claimed(final, work, resume)


def _claimed(final: Path, work: Path, resume: bool) -> Output:
    from filelock import FileLock, Timeout

    checkpoint = newest_complete(work) if resume else None
    if resume and checkpoint is None:
        raise RecipeError("nothing to resume: no complete checkpoint", where="output.dir", got=work)
    try:
        if work != final and work.exists() and not (work / _MARK).is_file():
            raise RecipeError("this folder is in the way", where="output.dir", got=work, fix="move it away")
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / ".lock", timeout=0)
        lock.acquire()
        if work != final and not resume:
            _empty(work)  # left by a run that was to replace `final` and was cut off
        (work / _MARK).write_text(json.dumps({"afina": __version__}) + "\n", encoding="utf-8")
    except Timeout as error:
        raise RecipeError("another run writes to the output folder", where="output.dir", got=work) from error
    except OSError as error:
        got = f"{work} ({error.strerror})"
        raise RecipeError("cannot write to the output folder", where="output.dir", got=got) from error
    return Output(final, work, checkpoint, lock)


def _empty(work: Path) -> None:
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()
