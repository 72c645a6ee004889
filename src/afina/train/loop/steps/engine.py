"""Steps that DeepSpeed's engine takes: what is looked at around them, and the optimizer's state in checkpoints.

The engine steps inside of the backward pass, and keeps gradients, optimizer's state and the weights that it updates in
flat parts, one in every process. What methods read and change is brought together here, tensor by tensor.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ....core.layers.partitioned import is_partitioned
from ....devices.ranks import is_first, rank, size
from ....errors import NumericError

FILE = "optimizer.safetensors"
_ALL = "of all"
"""Key under which the file keeps what belongs to no single tensor."""


_RATES = "rates"
"""Key of the learning rates of the optimizer's groups, which schedules change and do not set anew."""


class EngineSteps(TrainerCallback):  # type: ignore[misc]
    """Of several processes with an engine: it takes the steps, and what methods change reaches it."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    @property
    def changes(self) -> bool:
        """Whether the method reads gradients and changes tensors between the steps."""
        return getattr(self.trainer.model, "update_and_allocate", None) is not None

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Look before every step.

        Raises:
            NumericError: no engine would bring the gradients together.
        """
        if not hasattr(self.trainer.model_wrapped, "get_global_grad_norm"):
            raise NumericError("the processes' gradients would not meet", where=f"step {state.global_step + 1}",
                               got=type(self.trainer.model_wrapped).__name__, expected="DeepSpeedEngine")  # fmt: skip

    def take(self, step: Any) -> None:
        """Let the engine step; where anybody reads gradients they are there afterwards, clipped as the step was."""
        trained = [p for p in self.trainer.model.parameters() if p.requires_grad]
        first = self.trainer.state.global_step == 0
        found = [_gradient(p) for p in trained] if first or self.changes else []
        step()
        norm = float(self.trainer.model_wrapped.get_global_grad_norm() or 0.0)
        if not math.isfinite(norm):
            raise NumericError(
                "the gradient is not finite", where=f"step {self.trainer.state.global_step + 1}", got=norm,
                fix="lower training.learning_rate, or use model.dtype=float32; checkpoints before it are kept",
            )  # fmt: skip
        limit = self.trainer.args.max_grad_norm
        scale = min(1.0, limit / (norm + 1e-6)) if limit else 1.0
        for parameter, gradient in zip(trained, found, strict=False):
            parameter.grad = None if gradient is None else gradient.to(parameter.dtype) * scale

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any
    ) -> None:
        """After the method has changed what it changes."""
        if self.changes:
            for parameter in (p for p in self.trainer.model.parameters() if p.requires_grad):
                put(parameter, parameter.detach())


def _gradient(parameter: nn.Parameter) -> Tensor | None:
    from deepspeed.utils import safe_get_full_grad

    found: Tensor | None = safe_get_full_grad(parameter)
    return None if found is None else found.detach().clone().view(parameter.shape)


def put(parameter: nn.Parameter, value: Tensor, key: str | None = None) -> None:
    """Give the engine other numbers for a tensor, or for what its optimizer keeps of it; every process has them all."""
    from deepspeed import utils

    if not is_partitioned(parameter):
        if key is None:
            utils.safe_set_full_fp32_param(parameter, value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, key)
        return
    each = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    flat = torch.nn.functional.pad(value.reshape(-1), (0, each * size() - value.numel()))
    own = flat[each * rank() : each * (rank() + 1)]
    if key is None:
        parameter.ds_tensor.data.copy_(own)  # type: ignore[attr-defined]
        utils.safe_set_local_fp32_param(parameter, own)
    else:
        utils.safe_set_local_optimizer_state(parameter, own, key)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def _link(inside: Any) -> None:
    """Let ZeRO-2 know where the state of each tensor lies; by itself it looks once, after the first group's step."""
    if hasattr(inside, "_hp_optimizer_states_linked"):
        inside._hp_optimizer_states_linked = False
        inside._lazy_init_hp_params_optimizer_state()


def write_state(engine: Any, model: nn.Module, folder: Path) -> None:
    """Save the optimizer's state of every tensor as a whole, so that any number of processes can go on from it."""
    from deepspeed.utils import safe_get_full_optimizer_state
    from safetensors.torch import save_file

    _link(engine.optimizer)
    held: dict[str, Any] = next(iter(engine.optimizer.optimizer.state.values()), {})
    out = {f"{_ALL}/{k}": v.detach().cpu().clone() for k, v in held.items() if isinstance(v, Tensor) and v.dim() == 0}
    for key in (k for k, v in held.items() if isinstance(v, Tensor) and v.dim()):
        for name, parameter in _trained(model).items():
            value = safe_get_full_optimizer_state(parameter, key)
            out[f"{key}/{name}"] = value.detach().view(parameter.shape).cpu().contiguous().clone()
    rates = [float(group["lr"]) for group in engine.optimizer.optimizer.param_groups]
    out[_RATES] = torch.tensor(rates, dtype=torch.float64)
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(out, folder / FILE)


def read_state(engine: Any, model: nn.Module, folder: Path) -> None:
    """Take it over again; the adapter's file has been loaded."""
    from safetensors.torch import load_file

    held, trained = load_file(folder / FILE), _trained(model)
    for group, rate in zip(engine.optimizer.optimizer.param_groups, held.pop(_RATES).tolist(), strict=True):
        group["lr"] = rate
    keys = {k.partition("/")[0] for k in held} - {_ALL}
    inside = engine.optimizer
    flat = inside.fp32_partitioned_groups_flat if hasattr(inside, "fp32_partitioned_groups_flat") \
        else inside.single_partition_of_fp32_groups  # fmt: skip
    for part in flat:
        state = inside.optimizer.state[part]
        state |= {k: torch.zeros_like(part) for k in keys}
        state |= {k.partition("/")[2]: v.clone() for k, v in held.items() if k.startswith(f"{_ALL}/")}
    _link(inside)
    for name, parameter in trained.items():
        put(parameter, parameter.detach())
        for key in keys:
            put(parameter, held[f"{key}/{name}"].to(parameter.device), key)
