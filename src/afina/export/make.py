"""An export: refused with its reason, or written, loaded in its target, compared, and put in its place as a whole."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from ..core.files import leftovers
from ..core.files.overwriting import refuse_occupied, refuse_overwriting
from ..core.files.unwritable import told_if_unwritable
from ..errors import ConfigError, MergeError, NotMergeable
from ..train.data.prompts import Prompter
from ..train.tasks.base import Known, Trained
from ..version import __version__
from .contract import LOW_RANK, Comparison, Format, Subject
from .factors import merge_fault
from .merged import publish

RECORD = "afina_export.json"
"""What was compared; by it an export is known that may be replaced."""
CONVERT = "--rank 16 makes LoRA of it first (as afina convert does) and says what that loses; or a merged format"
MERGE = "afina predict and chat use it as it is"


def check_request(wanted: Format, storage: str | None, out: Path, overwrite: bool) -> None:
    """Refuse what no adapter could be exported to, before one is loaded.

    Raises:
        ConfigError: the format has no such storage, or a package for it is missing.
        CheckpointError: `out` holds something.
    """
    if storage is not None and storage not in wanted.storages:
        raise ConfigError(f"{wanted.name} has no such storage", where="--dtype", got=storage,
                          expected=", ".join(wanted.storages) or "nothing: numbers stay as they are")  # fmt: skip
    missing = [name for name in wanted.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{wanted.name} cannot be written without {', '.join(missing)}", where="--to",
                          fix="pip install 'afina[export]'")  # fmt: skip
    refuse_occupied(out, "an export", (out / RECORD).is_file(), overwrite)


def check_known(wanted: Format, known: Known, out: Path, *, as_lora: bool) -> None:
    """Refuse what the files of an adapter tell that the format cannot hold.

    Args:
        as_lora: whether LoRA is made of it first.

    Raises:
        NotMergeable: the target cannot hold it.
        ConfigError: the folder is an input.
    """
    base = Path(known.recipe.model.path).expanduser()
    refuse_overwriting(out, {"the adapter": known.folder, "the base model": base}, "--out")
    if as_lora and not known.is_adapter:
        raise NotMergeable("the whole model was trained, and LoRA is made of adapters", where=known.folder,
                           fix="leave --rank out")  # fmt: skip
    if (reason := wanted.foreseen(known, as_lora=as_lora)) is not None:
        raise _refused(wanted, reason, known)


def check_read(wanted: Format, known: Known, prompter: Prompter) -> None:
    """Refuse an adapter whose texts the target would read otherwise.

    Raises:
        NotMergeable: says why.
    """
    if (reason := wanted.unread(prompter)) is not None:
        raise _refused(wanted, reason, known)


def make(wanted: Format, subject: Subject, out: Path, *, overwrite: bool = False) -> Comparison:
    """Export an adapter into a folder, if the target says the same as the adapter.

    Raises:
        NotMergeable: the target cannot hold it; nothing was written.
        MergeError: the target cannot load what was written, or says something else; nothing was kept.
        ConfigError, CheckpointError: the folder is an input, holds something, or cannot be written.
    """
    trained = subject.trained
    base, located = Path(trained.recipe.model.path).expanduser(), Path(subject.base.name_or_path)
    refuse_overwriting(out, {"the adapter": trained.folder, "the base": located, "the base model": base}, "--out")
    check_request(wanted, subject.storage, out, overwrite)
    if (reason := wanted.refusal(subject)) is not None:
        raise _refused(wanted, reason, trained)
    work = leftovers.room_beside(out, "the export")
    try:
        with told_if_unwritable(work):
            try:
                wanted.write(subject, work)
            except NotMergeable as error:
                raise _refused(wanted, f"{error.where}: {error.what}", trained) from error
        found = wanted.check(subject, work)
        _refuse_different(wanted, found, out)
        found = replace(found, note="; ".join(filter(None, (subject.note, found.note))) or None)
        record = {"afina": __version__, "format": wanted.name, "storage": subject.storage, **asdict(found)}
        (work / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        publish(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return found


def _refused(wanted: Format, reason: str, known: Known) -> NotMergeable:
    kind = "adapter" if known.is_adapter else "model"
    as_lora = (wanted.holds == LOW_RANK and isinstance(known, Trained) and known.is_adapter and known.task.streams
               and merge_fault(known.model, str(known.model.active_adapter)) is None)  # fmt: skip
    return NotMergeable(f"{wanted.name} cannot hold this {kind}: {reason}", where=known.folder,
                        fix=CONVERT if as_lora else MERGE)  # fmt: skip


def _refuse_different(wanted: Format, found: Comparison, out: Path) -> None:
    if found.difference is None or found.tolerance is None or found.difference <= found.tolerance:
        return
    raise MergeError(f"what {found.target} makes of the export differs from the adapter", where=out,
                     got=f"{found.difference:.2e} of the largest logit ({found.what})",
                     expected=f"at most {found.tolerance:.0e}",
                     fix="nothing was kept; " + (f"--dtype {wanted.storages[0]}" if wanted.storages else
                                                 "compare the versions"))  # fmt: skip
