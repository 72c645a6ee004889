"""What a resumed run may change: what it writes and how it is watched, never what makes its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from ...errors import RecipeError
from ..report.events import Reporter
from .sections import Recipe

_FREE = frozenset(
    {"training.keep_checkpoints", "training.save_steps", "training.report_to", "training.workers",
     "evaluation.enabled", "evaluation.batch_size", "distributed",
     "diffusion.sample_every"}
)  # fmt: skip
"""Settings that change no bit of the result."""


_LENGTH = frozenset({"training.epochs", "training.max_steps"})


def check_resumable(former: Recipe, now: Recipe, reporter: Reporter, *, longer: bool = False) -> None:
    """Say what differs from the run that is resumed.

    Args:
        longer: whether a finished run goes on, with more epochs or steps.

    Raises:
        RecipeError: it would change the result; a table of these differences is noted before.
    """
    was, is_now = flat(former), flat(now)
    changed = {k: (was.get(k), is_now.get(k)) for k in {**was, **is_now} if was.get(k) != is_now.get(k)}
    free = _FREE | _LENGTH if longer else _FREE
    fixed = {k: v for k, v in changed.items() if k not in free}
    if longer:
        reporter.note(
            "a finished run goes on: the learning rate takes up the schedule of the longer run where it stands"
        )
    for key in sorted(changed.keys() & free):
        reporter.note(f"resumed with another {key}: {changed[key][1]} instead of {changed[key][0]}")
    if not fixed:
        return
    _refuse(fixed, "a resumed run has the settings that it began with", "set it back, or use --overwrite", reporter)


def check_contents(former: Mapping[str, str], now: Mapping[str, str], reporter: Reporter) -> None:
    """Compare the hashes of data and base with those that the run began with.

    Raises:
        RecipeError: one differs; a table of these differences is noted before.
    """
    changed = {k: (former.get(k, "not there"), now.get(k, "not there")) for k in {**former, **now}}
    changed = {k: v for k, v in changed.items() if v[0] != v[1]}
    if changed:
        what = "a resumed run has the data and the base that it began with"
        _refuse(changed, what, "bring the former contents back, or use --overwrite", reporter)


def _refuse(changed: Mapping[str, tuple[Any, Any]], what: str, fix: str, reporter: Reporter) -> NoReturn:
    reporter.note(_table(changed))
    key, (before, after) = next(iter(changed.items()))
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    raise RecipeError(what, where=key + more, got=after, expected=before, fix=fix)


def flat(recipe: Recipe) -> dict[str, Any]:
    """All settings but the output folder, by `section.key`."""
    sections = recipe.model_dump(exclude={"task", "distributed", "output"})
    values = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    return {"task": recipe.task, "distributed": recipe.distributed, **values}


def _table(changed: Mapping[str, tuple[Any, Any]]) -> str:
    rows = [("setting", "began with", "now"), *((k, str(a)[:40], str(b)[:40]) for k, (a, b) in changed.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"  {row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}" for row in rows)
