"""The output folder around a run: what ends it early is told with what is left, and how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ...core.files.overwriting import refuse_overwriting
from ...core.files.unwritable import told_if_unwritable
from ...devices.ranks import from_first, meet
from ...errors import RecipeError, StoppedError
from ..data.split import Split
from ..recipe.resuming import check_contents, check_resumable
from ..recipe.sections import Recipe
from ..recipe.settings import load_recipe, method_config
from ..recipe.yamlfile import dump
from ..report.checkpoints import newest_complete
from ..report.events import Reporter
from ..report.interrupts import Interrupted, postponed
from ..report.output import RECIPE_NAME, REPORT, Output, check_claim, claim
from ..report.results import versions


@contextmanager
def claimed(directory: str, *, overwrite: bool, resume: bool, longer: bool = False) -> Iterator[Output]:
    """The output folder for one run; the result is put in its place if the context ends well.

    Args:
        longer: whether a finished run may go on.

    Raises:
        RecipeError: the folder cannot be had.
        CheckpointError: the disk is full, or the folder can no longer be written.
        StoppedError: a signal asked for the end.
    """
    output = claim(directory, overwrite=overwrite, resume=resume, longer=longer)
    try:
        with told_if_unwritable(output.work, lambda: output.needed, lambda: f"make room, then {_left(output)}"):
            yield output
    except Interrupted as error:
        stopped = StoppedError(f"stopped by {error.name} outside of training steps: no saved step is lost",
                               fix=_left(output), exit_code=error.exit_code)  # fmt: skip
        _abandon(output)
        raise stopped from error
    except BaseException:
        _abandon(output)
        raise
    output.publish()


@contextmanager
def claimed_together(directory: str, *, overwrite: bool, resume: bool, longer: bool = False) -> Iterator[Output]:
    """The same for each of several processes: the first one claims the folder, the others work in it too."""
    with ExitStack() as stack:
        own: list[Output] = []

        def claim_it() -> tuple[Path, Path, Path | None]:
            claim = claimed(directory, overwrite=overwrite, resume=resume, longer=longer)
            own.append(stack.enter_context(claim))
            return own[0].final, own[0].work, own[0].checkpoint

        final, work, checkpoint = from_first(claim_it)
        yield own[0] if own else Output(final, work, checkpoint, None)
        meet()  # nobody writes any more


def _abandon(output: Output) -> None:
    with postponed():
        output.abandon()


def _left(output: Output) -> str:
    """What there is to go on from."""
    whole = newest_complete(output.work)
    if whole is None:
        return "run it again: it had no checkpoint yet"
    flags = "--resume" if output.work == output.final else "--overwrite --resume"
    return f"go on with {flags}: {whole.name} is whole"


def refuse_folder(recipe: Recipe, source: str | None, *, overwrite: bool, resume: bool) -> None:
    """Refuse an output folder that the run cannot have, before anything is read.

    Raises:
        RecipeError: it holds something that the flags do not allow to replace.
        ConfigError: the run would overwrite what it is made from.
    """
    longer = resume and not overwrite and lengthened(recipe)
    check_claim(recipe.output.dir, overwrite=overwrite, resume=resume, longer=longer)
    if not resume:
        spare_inputs(recipe, None, source)


def spare_inputs(recipe: Recipe, split: Split | None, source: str | None) -> None:
    """Refuse an output folder that holds what the run is made from.

    Args:
        split: the rows; None where they are not read yet.
        source: the file that the recipe was read from, if it was.

    Raises:
        ConfigError: the run would overwrite it.
    """
    out = Path(recipe.output.dir).expanduser()
    inputs = {f"the rows of {path.name}": path for rows in (split.parts if split else ()) for path in rows.paths}
    inputs["the base model"] = Path(recipe.model.path).expanduser()
    if source is not None and Path(source).absolute() not in (out.absolute(), out.absolute() / RECIPE_NAME):
        inputs["the recipe"] = Path(source)  # but for the one that a run writes itself, and writes again
    refuse_overwriting(out, inputs, "output.dir")


def lengthened(recipe: Recipe) -> bool:
    """Whether the output folder holds a finished run that the recipe trains for longer.

    Raises:
        RecipeError: the method's own schedule ended with that run.
    """
    folder = Path(recipe.output.dir).expanduser()
    if not (folder / REPORT).is_file() or not (folder / RECIPE_NAME).is_file():
        return False
    former, now = load_recipe(str(folder)).training, recipe.training
    if former.max_steps is not None or now.max_steps is not None:
        longer = former.max_steps is not None and now.max_steps is not None and now.max_steps > former.max_steps
    else:
        longer = now.epochs > former.epochs
    if longer and hasattr(method_config(recipe), "total_step"):
        raise RecipeError("this method's own schedule ended with the run", where="method.type", got=recipe.method.type,
                          fix="run it anew with --overwrite, or go on from it: model.adapter=DIR")  # fmt: skip
    return longer


def begun(output: Output, recipe: Recipe, reporter: Reporter, *, keep_dtype: bool, longer: bool) -> Recipe:
    """The recipe, written down. What a run that goes on stands on is as it was; damaged checkpoints are told."""
    if output.checkpoint is not None:
        _check_former(output, recipe, reporter, keep_dtype=keep_dtype, longer=longer)
    (output.work / RECIPE_NAME).write_text(dump(recipe), encoding="utf-8")
    return recipe


def _check_former(output: Output, recipe: Recipe, reporter: Reporter, *, keep_dtype: bool, longer: bool) -> None:
    assert output.checkpoint is not None
    for path, fault in output.faults.items():
        reporter.warn(f"{path.name} is not whole ({fault}): going on from {output.checkpoint.name}")
    former = load_recipe(str(output.work))
    if keep_dtype:  # a measurement may come out otherwise, but a run keeps its dtype
        recipe.model.dtype = former.model.dtype
    check_resumable(former, recipe, reporter, longer=longer)
    reporter.note(f"resuming from {output.checkpoint.name}")


def stand_on(stands_on: dict[str, str], output: Output, reporter: Reporter) -> None:
    """Keep what the run begins with, or compare it."""
    now = versions()
    if output.checkpoint is None:
        output.remember(stands_on, now)
        return
    check_contents(output.contents, stands_on, reporter)
    others = [f"{name} {now[name]} (began with {was})" for name, was in output.versions.items() if now.get(name) != was]
    if others:
        reporter.warn(f"resumed with {', '.join(others)}: it may not end to the bit as it would have")
    output.reopen()
