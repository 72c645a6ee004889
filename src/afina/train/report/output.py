"""The output folder: claimed before a run, replaced only by a finished one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.files.unwritable import check_place, free_bytes, shortened
from ...errors import RecipeError
from ...version import __version__
from .checkpoints import checkpoints, clear, is_sealed, look
from .interrupts import postponed
from .sampled import SAMPLES

_LOCK = ".lock"
MARK, RECIPE_NAME, REPORT = "afina_run.json", "recipe.yaml", "report.json"
"""Of a folder that a run took; of its settings; and written last: a folder that has it holds a finished run."""
BEFORE = "before.json"
"""What was measured before training; until the report has it."""
_BEGUN = ("checkpoint-*", "tensorboard", "metrics.jsonl", BEFORE, SAMPLES)
"""What a run writes before it has a checkpoint."""


@dataclass
class Output:
    """Where a run writes (`work`) and where the result belongs (`final`); they differ when a former run is replaced.

    Attributes:
        checkpoint: the checkpoint to go on from, or None.
        faults: newer checkpoints that are not whole, and why.
        needed: bytes that a checkpoint takes, once that is known.
    """

    final: Path
    work: Path
    checkpoint: Path | None
    lock: Any
    faults: dict[Path, str] = field(default_factory=dict)
    needed: int | None = None

    @property
    def contents(self) -> dict[str, str]:
        """Hashes of what the run began with.

        Raises:
            RecipeError: the folder does not tell them any more.
        """
        known = _mark(self.work).get("contents")
        if not isinstance(known, dict):
            raise RecipeError("what the run began with cannot be read", where=self.work / MARK,
                              fix="bring the file back as it was, or --overwrite to run anew")  # fmt: skip
        return known

    @property
    def versions(self) -> dict[str, str]:
        """What the run was begun with; empty where it is not known."""
        known = _mark(self.work).get("versions")
        return known if isinstance(known, dict) else {}

    def remember(self, contents: dict[str, str], versions: dict[str, str]) -> None:
        """Keep the hashes of what the run begins with, and the versions."""
        _write_mark(self.work, {**_mark(self.work), "contents": contents, "versions": versions})

    def reopen(self) -> None:
        """Make a finished run an unfinished one, which keeps what was measured before it."""
        report = self.work / REPORT
        if report.is_file():
            before = json.loads(report.read_text(encoding="utf-8")).get("before")
            if before is not None:
                (self.work / BEFORE).write_text(json.dumps(before) + "\n", encoding="utf-8")
            report.unlink()

    def publish(self) -> None:
        """Put a finished run in its place; only now is the former one given up."""
        with postponed():
            if self.work != self.final:
                former = self.final.with_name(f".{self.final.name}.former")
                shutil.rmtree(former, ignore_errors=True)
                self.final.rename(former)
                self.work.rename(self.final)
                shutil.rmtree(former)
                self.work = self.final
            _free(self.final, self.lock)

    def abandon(self) -> None:
        """Give up a failed run: what can be resumed stays, the rest goes."""
        if not any(map(is_sealed, checkpoints(self.work))):
            shutil.rmtree(self.work, ignore_errors=True)
        _free(self.final, self.lock)


def check_claim(directory: str, *, overwrite: bool, resume: bool, longer: bool = False) -> None:
    """Refuse a folder that could not be claimed as it is now; whether another run has it is left to `claim`.

    Raises:
        RecipeError: it is a file, or holds something that the flags do not allow to replace.
        CheckpointError: it cannot be written.
    """
    final = _own(directory)
    check_place(final)
    if not (final / _LOCK).exists():
        _filled(final, overwrite, resume, longer)


def _own(directory: str) -> Path:
    """The folder, absolute, if it is none or a run's.

    Raises:
        RecipeError: it is a file, or holds something else.
    """
    final = Path(directory).expanduser().absolute()
    if final.exists() and not final.is_dir():
        raise RecipeError("the output is a file", where="output.dir", got=final)
    try:
        foreign = not (final / MARK).is_file() and final.is_dir() and {p.name for p in final.iterdir()} - {_LOCK}
    except OSError as error:
        raise _unwritable(final, error) from error
    if foreign:
        raise RecipeError("the output folder holds something that is not a run of afina", where="output.dir",
                          got=final, fix="choose another output.dir")  # fmt: skip
    return final


def claim(directory: str, *, overwrite: bool, resume: bool, longer: bool = False) -> Output:
    """Take the output folder for one run.

    Args:
        longer: whether a finished run may be resumed.

    Raises:
        RecipeError: it holds something that the flags do not allow to replace, cannot be written, is in use by
            another run, or has nothing to resume.
    """
    final = _own(directory)
    try:
        lock = _locked(final)
        try:
            return _claimed(final, lock, overwrite, resume, longer)
        except BaseException:
            _free(final, lock)
            raise
    except OSError as error:
        raise _unwritable(final, error) from error


def _unwritable(final: Path, error: OSError) -> RecipeError:
    got = f"{shortened(final)} ({error.strerror}, {free_bytes(final):,} bytes free)"
    return RecipeError("cannot write to the output folder", where="output.dir", got=got, fix="choose another folder")


def _locked(final: Path) -> Any:
    """The lock of the folder that the result belongs in; it holds for whichever folder is worked in.

    Raises:
        RecipeError: another run has it.
    """
    from filelock import FileLock, Timeout

    final.mkdir(parents=True, exist_ok=True)
    lock = FileLock(final / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RecipeError("another run writes to the output folder", where="output.dir", got=final) from error
    if not (final / _LOCK).exists():  # another run ended and took the file along in this very moment
        lock.release()
        raise RecipeError("another run wrote to the output folder until now", where="output.dir", got=final,
                          fix="look at it, and run again")  # fmt: skip
    return lock


def _free(final: Path, lock: Any) -> None:
    """Give the lock back, and a folder that was made for it alone."""
    (final / _LOCK).unlink(missing_ok=True)
    lock.release()
    if final.is_dir() and not any(final.iterdir()):
        final.rmdir()


def _filled(final: Path, overwrite: bool, resume: bool, longer: bool) -> bool:
    """Whether the folder holds a former run.

    Raises:
        RecipeError: the flags do not allow to replace or resume it.
    """
    begun = (final / MARK).is_file() and not (final / REPORT).is_file() and not any(map(is_sealed, checkpoints(final)))
    filled = (final / MARK).is_file() and not begun
    if filled and resume and not overwrite and not longer and (final / REPORT).is_file():
        raise RecipeError(
            "the run is finished, there is nothing to resume",
            where="output.dir",
            got=final,
            fix="more epochs to train on, --overwrite to run anew, or with --resume if such a run was cut off",
        )
    if filled and not overwrite and not resume:
        raise RecipeError(
            "the output folder holds a former run",
            where="output.dir",
            got=final,
            fix="choose another output.dir, or --overwrite, or --resume if it was cut off",
        )
    return filled


def _claimed(final: Path, lock: Any, overwrite: bool, resume: bool, longer: bool) -> Output:
    filled = _filled(final, overwrite, resume, longer)
    work = final.with_name(f"{final.name}.partial") if filled and overwrite else final
    if work != final and work.exists() and _mark(work).get("replaces") != final.name:
        raise RecipeError("this folder is in the way", where="output.dir", got=work, fix="move it away")
    output = Output(final, work, None, lock)
    if resume:
        output.checkpoint, output.faults = _newest(work)
        clear(output.faults)
        return output
    work.mkdir(parents=True, exist_ok=True)
    _empty(work, ("*",) if work != final else _BEGUN)  # left by a run that was cut off
    _write_mark(work, {"afina": __version__, **({"replaces": final.name} if work != final else {})})
    return output


def _newest(work: Path) -> tuple[Path, dict[Path, str]]:
    """The checkpoint to go on from, and what is wrong with newer ones.

    Raises:
        RecipeError: there is none.
    """
    found = look(work)
    if found.whole is not None:
        return found.whole, found.faults
    damaged = [f"{path.name}: {fault}" for path, fault in found.faults.items() if is_sealed(path)]
    if damaged:
        more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise RecipeError("no checkpoint is whole, there is nothing to resume", where=work, got=damaged[0] + more,
                          fix="--overwrite to run anew")  # fmt: skip
    raise RecipeError("nothing to resume: no run was cut off here after its first checkpoint", where="output.dir",
                      got=work, fix="leave --resume out")  # fmt: skip


def _empty(work: Path, patterns: tuple[str, ...]) -> None:
    for path in [path for pattern in patterns for path in work.glob(pattern)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def _mark(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_mark(folder: Path, values: dict[str, Any]) -> None:
    partial = folder / f".{MARK}"
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / MARK)
