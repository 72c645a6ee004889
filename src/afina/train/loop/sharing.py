"""How several processes share a run: whether each has the whole model or a part of it, and how steps are taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.hosts.walk import outside_adapters
from ...core.layers.sharded import units
from ...core.layers.spreading import meeting, shard, trained_whole
from ...core.model.peft_model import PeftModel
from ...devices.place import place
from ...devices.ranks import cut, from_first, gathered, size, spread
from ...errors import RecipeError
from ...methods.baselines.full import FullConfig
from ..base.base_model import config_of
from ..base.in_parts import why_read_whole
from ..base.quantize import SPREADS
from ..recipe.resuming import flat
from ..recipe.sections import Recipe
from ..recipe.settings import method_config
from ..recipe.zero_stages import ELEMENTWISE, STAGES, check_engine, partitions_weights
from ..report.events import Reporter
from ..tasks import named
from .cutting import check_cut, check_heads, share_all_rows, tell_cut
from .zero import forget_engines, has_engine, look_no_more, share_by_engine

if TYPE_CHECKING:
    from .plans.setting import Setting


def tell_sharing(recipe: Recipe, reporter: Reporter) -> None:
    """Say how several processes share the run.

    Raises:
        RecipeError: they cannot.
    """
    forget_engines()
    if size() == 1:
        if recipe.distributed not in ("auto", "ddp"):
            raise RecipeError("one process has nobody to share the model with", where="distributed",
                              got=recipe.distributed, fix="--processes N, torchrun or srun")  # fmt: skip
        return
    _check_alike(recipe)
    how = named(recipe.task).shares
    if how == "never":
        raise RecipeError("several processes cannot share this task's steps", where="task", got=recipe.task,
                          fix="train it in one process")  # fmt: skip
    batch = recipe.training.batch_size
    if recipe.distributed == "tp":
        check_cut(recipe)
    elif batch % size():
        raise RecipeError("the rows of a step cannot be shared out evenly", where="training.batch_size", got=batch,
                          expected=f"a multiple of {size()}, the number of processes")  # fmt: skip
    check_engine(recipe)
    in_parts = recipe.distributed in ("fsdp2", "tp") or partitions_weights(recipe)
    if in_parts and (why := why_whole(recipe)) is not None:
        key, got = why
        raise RecipeError("this does not go with a model that is spread over processes", where=key, got=got,
                          fix="distributed=ddp, or change it")  # fmt: skip
    if recipe.distributed == "tp":
        return reporter.note(f"{size()} processes compute a part of every layer, for all rows of each step")
    nearly = "; each takes the mean over its own rows, so the steps are nearly those of one" if how == "nearly" else ""
    reporter.note(f"{size()} processes share each step's {batch} rows{nearly}")
    if recipe.distributed in STAGES:
        reporter.note(f"distributed: steps by DeepSpeed, ZeRO stage {STAGES[recipe.distributed]}")


def _check_alike(recipe: Recipe) -> None:
    """Refuse processes that were given different recipes: all would train by that of the first one.

    Raises:
        RecipeError: names a setting that differs, in every process.
    """
    every = gathered({k: v for k, v in flat(recipe).items() if k != "model.device"})
    for number, other in enumerate(every):
        key = next((k for k in every[0] if other.get(k) != every[0][k]), None)
        if key is not None:
            raise RecipeError("the processes were given different recipes", where=f"process {number}: {key}",
                              got=other.get(key), expected=f"{every[0][key]}, as process 0",
                              fix="give all of them the same command")  # fmt: skip


def why_whole(recipe: Recipe) -> tuple[str, object] | None:
    """The setting that needs the whole model in each process, and its value; None if there is none."""
    t, by_torch = recipe.training, recipe.distributed in ("fsdp2", "auto")
    full = isinstance(method_config(recipe), FullConfig)
    settings: dict[str, tuple[bool, object]] = {
        "method.type": (full and not by_torch, recipe.method.type),
        "training.optimizer": (full and t.optimizer not in ELEMENTWISE, t.optimizer),
        "model.quantize": (recipe.model.quantize not in (SPREADS if by_torch else ("none",)), recipe.model.quantize),
        "model.new_tokens": (bool(recipe.model.new_tokens) and not by_torch, recipe.model.new_tokens),
        "training.cache_frozen": (t.cache_frozen, True),
        "training.offload": (t.offload != "none", t.offload),
    }
    return next(((key, value) for key, (there, value) in settings.items() if there), None)


def _refused(recipe: Recipe) -> tuple[str, object] | None:
    """The task, if it cannot be spread."""
    try:
        named(recipe.task).check(recipe.model_copy(update={"distributed": "fsdp2"}))
    except RecipeError:
        return "task", recipe.task
    return None


def choose(recipe: Recipe, setting: Setting, reporter: Reporter) -> bool:
    """Whether the model is to be spread over the processes: as the recipe says, or where it does not fit a device."""
    from .plans.planning import too_large

    if size() == 1 or recipe.distributed in ("ddp", "zero2"):
        return False
    if recipe.distributed == "tp":
        check_heads(config_of(setting.location, recipe.model))
    if recipe.distributed in ("fsdp2", "tp") or partitions_weights(recipe):
        return True
    told = from_first(lambda: too_large(setting))
    if told is None:
        return False
    why = why_whole(recipe) or _refused(recipe)
    if why is not None:
        reporter.warn(f"distributed: ddp, though {told}: {why[0]}={why[1]} needs the whole model in each process")
        return False
    reporter.note(f"distributed: fsdp2, because {told}")
    return True


def share_model(model: Any, recipe: Recipe, reporter: Reporter) -> None:
    """Spread the model's frozen weights over the processes, if they are to be spread; adapters stay whole in each."""
    if not spread() or partitions_weights(recipe):  # DeepSpeed's engine does it, once it is there
        return
    import torch

    adapted, device = isinstance(model, PeftModel), torch.device(place(recipe.model.device).name)
    base = model.get_base_model() if adapted else model
    for name, beside in model.base_model.named_children() if adapted else ():
        if name != "model":
            beside.to(device)
    if cut():
        return tell_cut(model, reporter)
    count = sum(1 for _ in units(base))
    if not count:
        own = {p for _, module in outside_adapters(base) for p in module._parameters.values()}
        shard(base, device, [p for p in base.parameters() if p not in own])
        reporter.warn(f"every process read the whole base: {why_read_whole(recipe.model)}")
        count = sum(1 for _ in units(base))
    reporter.note(f"distributed: the base's weights are spread over {size()} processes, in {count} groups")


def share_steps(trainer: Any) -> None:
    """Let several processes take each step together, and measure together what one alone measures."""
    from .steps.callbacks import SharedSteps
    from .steps.draws import OwnDraws
    from .steps.measuring import share_measuring
    from .steps.shards import keep_shards, step_on_shards, trains_shards

    share_measuring(trainer)
    if cut():
        return share_all_rows(trainer)
    if has_engine(trainer):
        return share_by_engine(trainer)
    OwnDraws(trainer.model, trainer.args.device)
    trainer.add_callback(SharedSteps(trainer))
    if spread():
        _meet_beside_shards(trainer)
    if trains_shards(trainer.model):
        step_on_shards(trainer)
        keep_shards(trainer)


def _meet_beside_shards(trainer: Any) -> None:
    """Let the adapters' gradients meet beside a model that is spread; accelerate would refuse to."""
    from torch.nn.parallel import DistributedDataParallel

    plain, handler = trainer.accelerator.prepare_model, trainer.accelerator.ddp_handler

    def prepare(model: Any, device_placement: bool | None = None, evaluation_mode: bool = False) -> Any:
        ready = plain(model, device_placement=False, evaluation_mode=True)
        if evaluation_mode or not trained_whole(model) or isinstance(ready, DistributedDataParallel):
            return ready
        return meeting(ready, **({} if handler is None else handler.to_kwargs()))

    trainer.accelerator.prepare_model = prepare


def forget_measuring(trainer: Any) -> None:
    """Undo what measuring before training leaves: accelerate takes the model for prepared, and would not bring the
    gradients of several processes together."""
    if has_engine(trainer):
        look_no_more(trainer)
    trainer.model._is_accelerate_prepared = False
    trainer.accelerator._models.clear()
