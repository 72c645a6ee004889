"""The main job from end to end."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.model.peft_model import PeftModel
from ...devices.place import place
from ...devices.ranks import cut, from_first, is_first, joined, size, spread_out
from ...errors import StoppedError
from ...kernels.cpu import blocks
from ...kernels.frozen import FrozenPrefix
from ..answers.evaluate import against
from ..answers.generate import keep_ends
from ..base.base_model import vocab_size
from ..base.new_tokens import trains_new_tokens
from ..base.rates import own_rate, width_of
from ..data.encode import Data
from ..data.prompts import Prompter
from ..data.split import Split
from ..recipe.sections import Recipe
from ..recipe.settings import method_config
from ..report.descent import advice, descent, rate_to_try
from ..report.events import Reporter
from ..report.interrupts import Interrupted, interruptible
from ..report.output import BEFORE as BEFORE_FILE
from ..report.output import REPORT, Output
from ..report.results import card_section, plot_loss, report, told_by_set, write_json
from ..report.scores import Scores
from ..tasks import named
from ..tasks.base import AFTER, BEFORE, Job
from ..tasks.examples import encode
from .adapt import adapted, as_it_came, checkpoint_bytes, counts, plan, planned_steps, save
from .begin import begin_config, prepared
from .cautions import cautions
from .claimed import begun, claimed_together, lengthened, refuse_folder, spare_inputs, stand_on
from .contents import contents
from .cutting import save_part
from .fast_paths import offload, speed_up_run
from .method_state import read_method_state
from .plans.setting import Setting
from .scoring import scored
from .sharing import choose, forget_measuring, share_model, tell_sharing
from .steps.by_set import by_set
from .steps.shards import go_on_in_parts, trains_shards, whole_state
from .steps.trackers import check_trackers
from .trainer import Setup, make_trainer
from .zero import has_engine, load_in_parts, look_first, refuse_other_state


@dataclass(frozen=True)
class Result:
    """A finished run: its folder and the contents of `report.json`."""

    folder: Path
    report: dict[str, Any]
    before: Scores | None
    after: Scores | None


def run(
    recipe: Recipe, reporter: Reporter, *, overwrite: bool = False, resume: bool = False, source: str | None = None
) -> Result:
    """Train as the recipe says and leave everything in its output folder.

    Args:
        source: the file that the recipe was read from, if it was.

    Raises:
        AfinaError: a mistake in the recipe or the data, or training that cannot go on. A former run in the output
            folder is untouched then; checkpoints of this one are kept.
        StoppedError: a signal asked for the end; nothing that was finished is lost.
    """
    from ...compat import stand_in

    try:
        with interruptible():
            stand_in()  # the Trainer takes our PeftModel for the one that it knows
            check_trackers(recipe)
            with joined(place(recipe.model.device)):
                from_first(lambda: refuse_folder(recipe, source, overwrite=overwrite, resume=resume))
                tell_sharing(recipe, reporter)
                ready, split, labels = prepared(recipe, reporter)
                if not resume:
                    spare_inputs(ready, split, source)
                longer = resume and not overwrite and lengthened(ready)
                with claimed_together(recipe.output.dir, overwrite=overwrite, resume=resume, longer=longer) as output:
                    auto = recipe.model.dtype == "auto"
                    ready = from_first(lambda: begun(output, ready, reporter, keep_dtype=auto, longer=longer))
                    return _trained(ready, split, labels, output, reporter)
    except Interrupted as error:
        raise StoppedError(f"stopped by {error.name} before the run began: nothing is lost", fix="run it again",
                           exit_code=error.exit_code) from error  # fmt: skip


def _trained(recipe: Recipe, split: Split, labels: list[str] | None, output: Output, reporter: Reporter) -> Result:
    from transformers import set_seed

    refuse_other_state(recipe, output.checkpoint)
    location = named(recipe.task).location(recipe.model, reporter)
    from_first(lambda: stand_on(contents(split, recipe.model, location, recipe.data.class_images), output, reporter))
    tokenizer = named(recipe.task).reader(location, recipe.model, reporter)
    data = encode(recipe, split, labels, tokenizer, vocab_size(location, recipe.model, tokenizer), reporter)
    shown = range(min(2, len(data.train)))
    reporter.examples([named(recipe.task).rendered(data.train[i], tokenizer, labels) for i in shown])
    set_seed(recipe.training.seed)  # the head of a classifier and the adapter are drawn
    steps = planned_steps(recipe, named(recipe.task).examples(recipe, len(data.train)))
    config = begin_config(recipe, steps)
    spread = choose(recipe, Setting(recipe, location, tokenizer, data, steps), reporter)
    spread_out(spread, cut=recipe.distributed == "tp")
    if recipe.training.fast and place(recipe.model.device).kind == "cpu":
        why = blocks.use()
        reporter.detail(
            f"memory of tensors: {f'as torch has it, because {why}' if why else 'in blocks that serve again'}"
        )
    engine = load_in_parts(recipe)
    base = named(recipe.task).load(recipe.model, location, labels, tokenizer)
    config = trains_new_tokens(config, base, tokenizer, recipe.model)
    reporter.reached("base", {"model": base})
    model = adapted(recipe, base, config, data.tasks)
    reporter.note(plan(recipe, config, steps, width_of(base.config)))
    share_model(model, recipe, reporter)
    speed_up_run(recipe, model, tokenizer, data, steps, reporter)
    offload(recipe, model, reporter)
    output.needed = checkpoint_bytes(model)
    trainable, total = counts(model)
    reporter.note(f"trainable parameters: {trainable:,} of {total:,} ({trainable / total:.2%})")
    for line in cautions(recipe, config, data.train.items, trainable, steps):
        reporter.warn(line)
    assert recipe.training.learning_rate is not None
    setup = make_trainer(recipe, model, tokenizer, data, output.work, recipe.training.learning_rate, reporter)
    go_on_in_parts(setup.trainer, output.checkpoint)
    del engine  # the trainer has its own by now
    return _measured(recipe, data, setup, named(recipe.task).prompter(recipe.data, tokenizer), output, reporter)


def _measured(
    recipe: Recipe, data: Data, setup: Setup, prompter: Prompter, output: Output, reporter: Reporter
) -> Result:
    from transformers import set_seed

    trainer, measure = setup.trainer, recipe.evaluation.enabled and data.held_out is not None
    parts = {"model": trainer.model, "trainer": trainer, "data": data, "prompter": prompter, "recipe": recipe}
    reporter.reached("ready", parts)
    if measure and size() > 1 and has_engine(trainer):
        look_first(trainer)
    before = _before(recipe, data, setup, prompter, output, reporter) if measure else None
    if before is not None:
        reporter.note(f"before: {before}")
    if size() > 1:
        forget_measuring(trainer)
    set_seed(recipe.training.seed)  # so that measuring before changes no bit of the training
    started = time.monotonic()
    if output.checkpoint is not None:
        read_method_state(trainer.model, output.checkpoint, before=True)
    with FrozenPrefix(trainer.model) if recipe.training.cache_frozen else nullcontext() as kept:
        done = trainer.train(resume_from_checkpoint=str(output.checkpoint) if output.checkpoint else None)
    if kept is not None:
        reporter.note(f"outputs of {kept.depth} frozen layers kept: {kept.hits} of {kept.hits + kept.misses} batches")
    seconds = time.monotonic() - started
    reporter.reached("trained", parts)
    reporter.note(f"trained {done.global_step} steps in {seconds:.0f} s")
    setup.stop.release()
    setup.stop.raise_if_stopped(done.global_step, trainer.state.max_steps)
    job = Job(recipe, trainer, data, prompter, reporter, AFTER)
    after = scored(job) if measure else None
    if before is not None and after is not None:
        after = against(before, after)
    trainable, total = counts(trainer.model)
    training = {"steps": done.global_step, "seconds": round(seconds, 1), "loss": done.training_loss,
                "tokens": int(trainer.state.num_input_tokens_seen), **_descended(recipe, setup, reporter)}  # fmt: skip
    values = report(
        task=recipe.task, method=recipe.method.type, base_model=recipe.model.path, trainable=trainable, total=total,
        training=training, before=before, after=after,
        data_sha256={rows.path.name: rows.digest() for rows in data.split.parts}, device=trainer.args.device,
    )  # fmt: skip
    state = whole_state(trainer.model) if trains_shards(trainer.model) else None
    if cut() and not is_first():
        save_part(trainer.model, output.work)
    if is_first():
        _save(recipe, prompter, setup, values, before, after, output.work, state)
    return Result(output.final, values, before, after)


def _descended(recipe: Recipe, setup: Setup, reporter: Reporter) -> dict[str, Any]:
    """Whether the loss fell, for the report; a run whose loss did not is told so."""
    if named(recipe.task).may_stand_still:  # its loss is no measure of what is learnt
        return {"descent": None}
    found = descent([line["loss"] for line in setup.metrics.history if "loss" in line])
    rate = recipe.training.learning_rate
    assert rate is not None
    trainer = setup.trainer
    own = own_rate(type(method_config(recipe)), width_of(trainer.model.config), trainer.state.max_steps)
    better = rate_to_try(found, rate, own)
    if better is not None:
        reporter.warn(advice(found, better))
    sets = by_set(setup.metrics.history)
    if sets is not None:
        reporter.note(f"training loss by data set: {told_by_set(sets)}")
    return {"descent": {**found.as_dict(), "rate_to_try": better}, "sets": sets}


def _before(recipe: Recipe, data: Data, setup: Setup, prompter: Prompter, output: Output, reporter: Reporter) -> Scores:
    """The scores before training; a resumed run has them on file."""
    file = output.work / BEFORE_FILE
    if from_first(lambda: output.checkpoint is not None and file.is_file()):
        return Scores.from_dict(json.loads(file.read_text(encoding="utf-8")))
    # Untrained virtual tokens disturb the model; what a run is compared with is the base.
    with as_it_came(recipe, setup.trainer.model, data.tasks):
        scores = scored(Job(recipe, setup.trainer, data, prompter, reporter, BEFORE))
    if is_first():
        write_json(file, scores.as_dict())
    return scores


def _save(
    recipe: Recipe,
    prompter: Prompter,
    setup: Setup,
    values: dict[str, Any],
    before: Scores | None,
    after: Scores | None,
    work: Path,
    state: dict[str, Any] | None,
) -> None:
    """The adapter or model comes last but for the report, so that a folder with a report is whole."""
    plot_loss(setup.metrics.history, before, after, work / "loss.png")
    prompter.keep(work)
    if named(recipe.task).streams and not isinstance(setup.trainer.model, PeftModel):
        keep_ends(setup.trainer.model, prompter)
    (work / "README.md").unlink(missing_ok=True)  # TRL's, which its checkpoints leave
    save(setup.trainer.model, recipe, work, state)
    with (work / "README.md").open("a", encoding="utf-8") as card:
        card.write(card_section(values, named(recipe.task).card(work)))
    write_json(work / REPORT, values)
    (work / BEFORE_FILE).unlink(missing_ok=True)
