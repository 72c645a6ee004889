"""The settings of transformers' trainers, and of those that TRL makes of them, from a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...devices.found import Device
from ...devices.place import place, scales_loss
from ...devices.ranks import sharers, size
from ...errors import AfinaError, RecipeError
from ..recipe.sections import Recipe
from ..recipe.zero_stages import engine_settings


@contextmanager
def refused(by: str) -> Iterator[None]:
    """Turn what a library refuses into the user's mistake.

    Raises:
        RecipeError: the library raised in the context.
    """
    try:
        yield
    except AfinaError:
        raise
    except (ValueError, KeyError, NotImplementedError) as error:
        raise RecipeError(f"{by} refuses a setting", where="training", got=str(error).splitlines()[0][:200]) from error


def training_arguments(
    recipe: Recipe, work: Path, learning_rate: float, kind: type[Any] | None = None, **more: Any
) -> Any:
    """Transformers' TrainingArguments of a recipe, or those of the subclass `kind` with `more` of its own.

    Raises:
        RecipeError: a name (schedule, optimizer, tracker) is not known to transformers.
    """
    from transformers import TrainingArguments

    t, device = recipe.training, place(recipe.model.device)
    own = _bookkeeping(recipe)
    own |= {_checkpointing_key(TrainingArguments): t.gradient_checkpointing,
            "per_device_eval_batch_size": recipe.evaluation.batch_size,
            "accelerator_config": {"split_batches": sharers() > 1}}  # fmt: skip
    with refused("transformers"):
        made = (kind or TrainingArguments)(
            output_dir=str(work),
            learning_rate=learning_rate,
            per_device_train_batch_size=t.batch_size,  # of all processes together: split_batches
            gradient_accumulation_steps=t.gradient_accumulation,
            num_train_epochs=t.epochs,
            max_steps=t.max_steps or -1,
            lr_scheduler_type=t.scheduler,
            warmup_steps=t.warmup,
            weight_decay=t.weight_decay,
            max_grad_norm=t.max_grad_norm,
            optim=t.optimizer,
            bf16=t.bf16,
            fp16=not t.bf16 and scales_loss(device, recipe.model.dtype),
            dataloader_num_workers=t.workers,
            dataloader_pin_memory=device.kind == "cuda",
            use_cpu=device.kind == "cpu",
            deepspeed=engine_settings(recipe),
            seed=t.seed,
            **{**own, **more},
        )
    if size() == 1:
        keep_to(made, device)
    return made


def keep_to(arguments: Any, device: Device) -> None:
    """Let a trainer use that device; by itself it takes the first GPU, or spreads batches over all of them.

    Raises:
        RecipeError: it can only use one of another kind.
    """
    import torch

    if device.kind == "cpu":
        return
    where = torch.device(device.name)
    chosen = arguments.device  # from here on it does not choose again
    if chosen.type != where.type:
        raise RecipeError("transformers' trainer takes another device first", where="model.device", got=device.name,
                          expected=chosen)  # fmt: skip
    if where.type == "cuda":
        torch.cuda.set_device(where)
    arguments.__dict__["_setup_devices"], arguments._n_gpu = where, 1


def _bookkeeping(recipe: Recipe) -> dict[str, Any]:
    """What is logged and saved, and when."""
    t, every = recipe.training, recipe.evaluation.every
    best = {} if every is None else {
        "eval_strategy": "steps", "eval_steps": every, "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss", "greater_is_better": False,
    }  # fmt: skip
    return {
        **best,
        "logging_steps": t.logging_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if t.save_steps or every else "epoch",
        "save_steps": every or t.save_steps or 500,
        "save_total_limit": t.keep_checkpoints,
        "report_to": t.report_to,
        "include_num_input_tokens_seen": "non_padding",
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }


def _checkpointing_key(arguments: Any) -> str:
    """The setting was renamed in transformers 5; the former name warns."""
    new = "activation_checkpointing"
    return new if new in arguments.__dataclass_fields__ else "gradient_checkpointing"
