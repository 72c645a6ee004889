"""DeepSpeed's engine behind a trainer: before training, around its steps, and in its checkpoints.

Checkpoints are the run's own: the adapter's file, and the optimizer's state as tensors; nothing is pickled.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from ...errors import RecipeError
from ..base.in_parts import why_read_whole
from ..recipe.sections import Recipe
from ..recipe.zero_stages import STAGES, engine_settings, partitions_weights
from .steps.engine import EngineSteps, read_state, write_state


def forget_engines() -> None:
    """Let transformers forget the engine of a former run of this process: it would load models in parts for it."""
    if "deepspeed" in sys.modules:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def load_in_parts(recipe: Recipe) -> Any:
    """Let transformers give each process its part of every weight as the first one reads it, where the engine is to
    keep parts of weights; for as long as what is returned is held."""
    if not partitions_weights(recipe) or why_read_whole(recipe.model) is not None:
        return None
    from transformers.integrations import HfDeepSpeedConfig

    numbers = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0}
    return HfDeepSpeedConfig({**(engine_settings(recipe) or {}), **numbers})


def refuse_other_state(recipe: Recipe, checkpoint: Path | None) -> None:
    """Refuse to go on from a checkpoint whose optimizer's state is in the other form.

    Raises:
        RecipeError: an engine wrote it and none would read it, or the other way round.
    """
    if checkpoint is None:
        return
    by_engine, wanted = any(checkpoint.glob("global_step*")), recipe.distributed in STAGES
    if by_engine != wanted:
        forms = ("DeepSpeed's optimizer state", "torch's optimizer state")
        raise RecipeError("the checkpoint holds another form of the optimizer's state", where="distributed",
                          got=f"{recipe.distributed}, and in {checkpoint.name} {forms[not by_engine]}",
                          fix=f"--resume with {'zero2, zero3 or zero3_offload' if by_engine else 'ddp or fsdp2'}",
                          )  # fmt: skip


def has_engine(trainer: Any) -> bool:
    """Whether DeepSpeed takes a trainer's steps."""
    return bool(trainer.is_deepspeed_enabled)


def share_by_engine(trainer: Any) -> None:
    """Let the engine that accelerate makes take the steps, save and load as runs do."""
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # how it gathers
    steps, plain = EngineSteps(trainer), trainer.accelerator.prepare
    trainer.add_callback(steps)

    def prepare(*parts: Any, **how: Any) -> Any:
        made = plain(*parts, **how)
        engine = made[0] if isinstance(made, tuple) else made
        if hasattr(engine, "save_checkpoint"):
            _dress(engine, trainer, steps)
        return made

    def save_model(output_dir: str | None = None, _internal_call: bool = False) -> None:
        if trainer.args.should_save:
            trainer._save(output_dir)

    trainer.accelerator.prepare, trainer.save_model = prepare, save_model


def _dress(engine: Any, trainer: Any, steps: EngineSteps) -> None:
    plain = engine.step

    def step(*args: Any, **how: Any) -> None:
        steps.take(lambda: plain(*args, **how))

    def save_checkpoint(folder: str, exclude_frozen_parameters: bool = True) -> None:
        write_state(engine, trainer.model, _inside(folder, trainer.state.global_step))

    def load_checkpoint(folder: str, **how: Any) -> tuple[str, dict[str, Any]]:
        trainer._load_from_checkpoint(folder, trainer.model)
        (inside,) = Path(folder).glob("global_step*")
        read_state(engine, trainer.model, inside)
        return folder, {}

    engine.step, engine.save_checkpoint, engine.load_checkpoint = step, save_checkpoint, load_checkpoint


def _inside(folder: str, step: int) -> Path:
    """Where transformers looks for what an engine saved."""
    return Path(folder) / f"global_step{step}"


def look_first(trainer: Any) -> None:
    """Make a model ready to be measured before it trains: with ZeRO-3 by an engine that only gathers weights."""
    from transformers.integrations.deepspeed import deepspeed_init

    if trainer.accelerator.state.deepspeed_plugin.zero_stage == 3:
        deepspeed_init(trainer, num_training_steps=0, inference=True)
        trainer.model_wrapped = trainer.accelerator.prepare(trainer.model)
    else:
        trainer.accelerator._models.append(trainer.model)
    trainer.deepspeed = trainer.model_wrapped


def look_no_more(trainer: Any) -> None:
    """Take that away again; weights stay in parts."""
    engine = trainer.deepspeed
    if engine is None:
        return
    if engine is not trainer.model:
        engine.destroy()
        for module in trainer.model.modules():
            for hook in ("pre_bwd_fn", "post_bwd_fn"):  # of that engine; the next one would take them for its own
                module.__dict__.pop(hook, None)
    trainer.deepspeed, trainer.model_wrapped = None, trainer.model
    trainer.accelerator.deepspeed_engine_wrapped = None
