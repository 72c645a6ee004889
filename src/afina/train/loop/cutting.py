"""Runs on a tensor-parallel base (`distributed: tp`): what is refused, told, and written as one process would."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.hosts.host import hosts
from ...core.layers.sharded import is_sharded, shared_like, whole
from ...core.layers.tensor_parallel import CutLinear, is_cut_along
from ...devices.place import place
from ...devices.ranks import size
from ...errors import RecipeError
from ..recipe.sections import Recipe
from ..report.events import Reporter

if TYPE_CHECKING:
    from ...core.model.peft_model import PeftModel


def check_cut(recipe: Recipe) -> None:
    """Refuse a model that cannot be cut over the processes.

    Raises:
        RecipeError: names what does not divide.
    """
    import torch

    there, wanted = torch.accelerator.current_accelerator(), place(recipe.model.device).kind
    if (kind := "cpu" if there is None else there.type) != wanted:
        raise RecipeError("transformers cuts models over the machine's accelerators", where="model.device", got=wanted,
                          expected=kind)  # fmt: skip


def check_heads(config: Any) -> None:
    """Refuse a model whose layers or heads cannot be shared out.

    Raises:
        RecipeError: transformers has no plan for it, or a number does not divide.
    """
    text = config.get_text_config()
    if not getattr(text, "base_model_tp_plan", None):
        raise RecipeError("transformers has no tensor-parallel plan for this model", where="distributed", got="tp",
                          expected="a model with a base_model_tp_plan, or fsdp2")  # fmt: skip
    for key in ("num_attention_heads", "num_key_value_heads"):
        number = getattr(text, key, None)
        if isinstance(number, int) and number % size():
            raise RecipeError("the model's heads cannot be shared out evenly", where=f"config.json: {key}", got=number,
                              expected=f"a multiple of {size()}, the number of processes")  # fmt: skip


def tell_cut(model: PeftModel, reporter: Reporter) -> None:
    """Say what of an adapter is cut along with its layers, and what is shown whole ones."""
    cut = [host for _, host in hosts(model) if isinstance(host.base, CutLinear) and host.base.cut.follows]
    placed = [adapter for host in cut for name in host.names() if (adapter := host.adapter(name)) is not None]
    along = sum(map(is_cut_along, placed))
    reporter.note(f"distributed: tp: {along} of {len(placed)} adapters on cut layers are cut along")
    beside = next((type(adapter).__name__ for adapter in placed if not is_cut_along(adapter)), None)
    if beside is not None:
        reporter.warn(f"distributed: tp: {beside} is shown whole layers, which are gathered in every pass; fsdp2 costs "
                      "less")  # fmt: skip


def share_all_rows(trainer: Any) -> None:
    """Let every process take all rows of each step, as one alone does, and write what one does."""
    from accelerate.data_loader import prepare_data_loader

    accelerator = trainer.accelerator
    plain = accelerator.prepare_model

    def all_rows(loader: Any, **how: Any) -> Any:
        made = prepare_data_loader(
            loader, accelerator.device, num_processes=1, process_index=0, put_on_device=True,
            rng_types=list(accelerator.rng_types), use_seedable_sampler=accelerator.use_seedable_sampler,
        )  # fmt: skip
        accelerator._dataloaders.append(made)
        return made

    def prepare(model: Any, device_placement: bool | None = None, evaluation_mode: bool = False) -> Any:
        return plain(model, device_placement=False, evaluation_mode=True)

    accelerator.prepare_data_loader, accelerator.prepare_model = all_rows, prepare
    accelerator.gather = accelerator.reduce = _own
    trainer._nested_gather = _own
    trainer.args.average_tokens_across_devices = False
    _write_wholes(trainer)


def _own(found: Any, *args: Any, **kwargs: Any) -> Any:
    """What a process has is what all have."""
    return found


def _write_wholes(trainer: Any) -> None:
    """Let checkpoints hold the adapter's and the optimizer's state as one process has them, so that any number of
    processes goes on from them."""
    make, save, save_model = trainer.create_optimizer, trainer._save_optimizer_and_scheduler, trainer._save

    def create_optimizer(*args: Any, **kwargs: Any) -> Any:
        fresh = trainer.optimizer is None
        made = make(*args, **kwargs)
        if fresh:
            made.register_state_dict_post_hook(_gathered)
            made.register_load_state_dict_pre_hook(cut_state)
        return made

    def save_all(output_dir: str) -> None:
        if not trainer.args.should_save:
            trainer.optimizer.state_dict()  # which all have to gather
        save(output_dir)

    def save_parts(output_dir: str | None = None, state_dict: Any = None) -> None:
        if not trainer.args.should_save:
            save_part(trainer.model, Path(output_dir or trainer.args.output_dir))
        save_model(output_dir, state_dict)

    trainer.create_optimizer, trainer._save_optimizer_and_scheduler = create_optimizer, save_all
    trainer._save = save_parts


def _gathered(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    import torch

    own = state["state"]
    wholes = {k: {n: whole(t) if isinstance(t, torch.Tensor) else t for n, t in v.items()} for k, v in own.items()}
    return {**state, "state": wholes}


def cut_state(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state as one process has it, in parts as its parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [n for group in state["param_groups"] for n in group["params"]]
    own = dict(state["state"])
    for number, parameter in zip(numbers, parameters, strict=True):
        if is_sharded(parameter) and number in own:
            own[number] = {n: shared_like(parameter, t) if getattr(t, "shape", None) == parameter.shape else t
                           for n, t in own[number].items()}  # fmt: skip
    return {**state, "state": own}


def save_part(model: Any, folder: Path) -> None:
    """Give what this process has of the adapter to the first one, which writes it."""
    model.save_pretrained(folder, is_main_process=False)
