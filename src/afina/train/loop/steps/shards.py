"""Full fine-tuning of a model that is spread: steps, checkpoints of which each process writes its part, whole files.

A checkpoint holds the model and the optimizer's state as safetensors files of `torch.distributed.checkpoint`, one for
each process, and nothing is brought together for it. Any number of processes goes on from it, one with the whole model
too; transformers' `from_pretrained` reads its folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ....core.layers.sharded import is_sharded, reshard, whole
from ....devices.ranks import cut, is_first, meet, size
from ....errors import CheckpointError
from ..cutting import cut_state

OPTIMIZER = "optimizer_shards"
"""Folder of a checkpoint with the optimizer's state."""
SCHEDULER = "scheduler.json"


def trains_shards(model: nn.Module) -> bool:
    """Whether what trains of a model is spread over processes that gather it where it runs."""
    return not cut() and any(p.requires_grad and is_sharded(p) for p in model.parameters())


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors, gathered one after the other; all processes have to ask for them, and the first gets them."""
    reshard(model)
    found: dict[int, Tensor] = {}  # tied weights stay one tensor
    out = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in found:
            full = whole(tensor.detach())
            found[id(tensor)] = full.cpu() if is_first() else full.new_empty(0)
        out[name] = found[id(tensor)]
    return out


def step_on_shards(trainer: Any) -> None:
    """Let a trainer make its optimizer of the parts that stay, and clip by the norm of all of them."""
    make = trainer.create_optimizer

    def create_optimizer(*args: Any, **kwargs: Any) -> Any:
        reshard(trainer.model)
        fresh, made = trainer.optimizer is None, make(*args, **kwargs)
        if fresh:
            made.register_load_state_dict_pre_hook(cut_state)
        return made

    trainer.create_optimizer, trainer.accelerator.clip_grad_norm_ = create_optimizer, _clip
    trainer._mixed_mesh_grads = False  # transformers' own sum over meshes, which knows no tensors beside them


@torch.no_grad()
def _clip(parameters: Iterable[nn.Parameter], max_norm: float, norm_type: float = 2.0) -> Tensor:
    """Scale gradients, in parts and whole ones, so that their norm together is at most so much; the norm before."""
    grads = [p.grad for p in parameters if p.grad is not None]
    parts = [_local(g) for g in grads if is_sharded(g)]
    wholes = [g for g in grads if not is_sharded(g)]
    squares = [torch.stack([g.float().square().sum() for g in of]).sum() if of else torch.zeros(()) for of in
               (parts, wholes)]  # fmt: skip
    device = grads[0].device
    total = squares[0].to(device)
    torch.distributed.all_reduce(total)
    norm = (total + squares[1].to(device)).sqrt()
    for g in (*parts, *wholes):
        g.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0).to(g.dtype))
    return norm


def _local(tensor: Any) -> Tensor:
    return tensor.to_local()  # type: ignore[no-any-return]


def keep_shards(trainer: Any) -> None:
    """Let each process write its part of a trainer's checkpoints."""
    checkpoint = _dcp()

    def save(output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or trainer.args.output_dir)
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
            own = trainer.model.config, getattr(trainer.model, "generation_config", None), trainer.processing_class
            for part in own:
                if part is not None:
                    part.save_pretrained(folder)
        meet()
        reshard(trainer.model)
        state = _model_state(trainer.model)
        for name in _again(state):  # a tied weight is written under each name: readers ask for all of them
            state[name] = state[name].clone()
        checkpoint.save(state, storage_writer=_writer(folder))

    def save_optimizer(output_dir: str) -> None:
        state = _optimizer_state(trainer.model, _bare(trainer.optimizer))
        checkpoint.save(_tensors(state), storage_writer=_writer(Path(output_dir) / OPTIMIZER))
        if is_first():
            found = trainer.lr_scheduler.state_dict()
            (Path(output_dir) / SCHEDULER).write_text(json.dumps(found, default=str), encoding="utf-8")

    trainer._save, trainer._save_optimizer_and_scheduler = save, save_optimizer
    trainer._load_best_model = lambda: _load_model(trainer.model, Path(trainer.state.best_model_checkpoint))


def _load_state(trainer: Any, folder: str | None) -> None:
    """Give the optimizer and the schedule what a checkpoint in parts holds of them; the Trainer asks for none too."""
    if folder is None:
        return
    checkpoint = Path(folder)
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    optimizer = _bare(trainer.optimizer)
    state = _optimizer_state(trainer.model, optimizer)
    found = _tensors(state)
    _fetch(found, checkpoint / OPTIMIZER)
    state |= {n: t.reshape(state[n].shape) for n, t in found.items()}
    set_optimizer_state_dict(trainer.model, optimizer, state, options=_flat())
    trainer.lr_scheduler.load_state_dict(json.loads((checkpoint / SCHEDULER).read_text(encoding="utf-8")))
    for group, rate in zip(optimizer.param_groups, trainer.lr_scheduler.get_last_lr(), strict=True):
        group["lr"] = rate


def has_shards(checkpoint: Path | None) -> bool:
    """Whether processes have written a checkpoint in parts."""
    return checkpoint is not None and (checkpoint / OPTIMIZER).is_dir()


def go_on_in_parts(trainer: Any, checkpoint: Path | None) -> None:
    """Let a trainer go on from a checkpoint where that or the model is in parts."""
    if checkpoint is None or not (has_shards(checkpoint) or trains_shards(trainer.model)):
        return

    def load_model(folder: str, model: Any = None) -> None:
        _load_model(trainer.model, Path(folder))

    trainer._load_from_checkpoint = load_model
    if has_shards(checkpoint):
        trainer._load_optimizer_and_scheduler = partial(_load_state, trainer)


def _load_model(model: nn.Module, folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    reshard(model)
    state = _model_state(model)
    for name in _again(state):  # files of one process have a tied weight once
        del state[name]
    _fetch(state, folder)
    set_model_state_dict(model, state, options=StateDictOptions(strict=False))


def _again(state: dict[str, Any]) -> list[str]:
    """The names of tensors that have another name already."""
    seen, out = set[int](), list[str]()
    for name, tensor in state.items():
        pointer = (_local(tensor) if is_sharded(tensor) else tensor).data_ptr()
        out += [name] if pointer in seen else []
        seen.add(pointer)
    return out


def _fetch(state: dict[str, Any], folder: Path) -> None:
    """Read tensors of that name from the files of a folder, each process its part.

    Raises:
        CheckpointError: one is missing, or a file is damaged.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    try:
        _dcp().load(state, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=size() == 1)
    except CheckpointException as error:
        got = next((str(e[0]) for e in error.failures.values()), str(error)).splitlines()[0]
        raise CheckpointError("the checkpoint cannot be read in parts", where=folder, got=got) from error


def _model_state(model: nn.Module) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    return get_model_state_dict(model)


def _optimizer_state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    reshard(model)
    return get_optimizer_state_dict(model, optimizer, options=_flat())


def _bare(optimizer: Any) -> Any:
    """An optimizer without accelerate's around it."""
    return getattr(optimizer, "optimizer", optimizer)


def _flat() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(flatten_optimizer_state_dict=True)


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """Of an optimizer's state what is of parameters; rates and the like come from the recipe and the schedule."""
    return {n: t.reshape(1) if t.dim() == 0 else t for n, t in state.items() if isinstance(t, Tensor)}


def _dcp() -> Any:
    from torch.distributed import checkpoint

    return checkpoint


def _writer(folder: Path) -> Any:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    return HuggingFaceStorageWriter(str(folder), save_distributed=True)
