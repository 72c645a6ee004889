"""What every registered method does in one of two processes whose engine is DeepSpeed's ZeRO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import afina
from afina.core.disk.checkpoint import WEIGHTS_NAME
from afina.core.layers.partitioned import is_placeholder
from afina.devices.ranks import meet, rank

from . import whole
from .spread import DRAWS, MIXES, STEPS, begun_on, inputs_of, loss_of, notes, off, trained_otherwise, two
from .whole import WIDTH, Case

RATE = 0.02


def settings(stage: int, offload: bool = False) -> dict[str, Any]:
    """The engine's, on processors; no weight is small enough to stay whole."""
    host = {"device": "cpu"}
    zero: dict[str, Any] = {"stage": stage, "stage3_param_persistence_threshold": 0}
    if offload:
        zero |= {"offload_param": host, "offload_optimizer": host}
    return {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0, "zero_optimization": zero,
            "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}  # fmt: skip


def engine(model: nn.Module, stage: int) -> Any:
    """A model's engine with an optimizer for what trains."""
    import deepspeed

    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    made, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings(stage))
    return made


def partitioned(base: nn.Module) -> nn.Module:
    """A base as transformers loads it under ZeRO-3: every weight in parts, no engine yet."""
    import deepspeed

    deepspeed.zero.Init(module=base, config_dict_or_path=settings(3))
    assert all(map(is_placeholder, base.parameters()))
    return base


def steps(case: Case, model: Any, made: Any, mine: slice) -> tuple[list[float], dict[str, Tensor]]:
    """As `spread.trained`, but the engine takes the steps."""
    model.train("Llama" in type(model.get_base_model()).__name__)
    inputs, losses = inputs_of(case, mine), []
    for _ in range(STEPS):
        loss = loss_of(made(**inputs))
        made.backward(loss)
        made.step()
        value = loss.detach().clone()
        torch.distributed.all_reduce(value)
        losses.append(float(value) / 2)
    return losses, {n: t.detach().clone() for n, t in afina.get_peft_model_state_dict(model).items()}


def problems(case: Case, stage: int, folder: Path, experts: Path) -> list[str]:
    """What is otherwise than in one process."""
    one, out = case.adapted(experts), list[str]()
    wanted, plain = case.logits(one), case.logits(case.shape.build(0, WIDTH))
    name = f"{case.method.lower()}-{case.shape}-{case.option}-{stage}"
    if not torch.distributed.is_initialized():  # for good: DeepSpeed holds on to the first group
        torch.distributed.init_process_group("gloo")
    with two():
        model = case.adapted(experts)
        made = engine(model, stage)
        if stage == 3:
            gone = sum(map(is_placeholder, model.get_base_model().parameters()))
            assert gone, "no weight is in parts"
        if far := off(case.logits(model), wanted):
            out.append(f"its outputs differ by {far}")
        with model.disable_adapter():
            if far := off(case.logits(model), plain):
                out.append(f"switched off its outputs differ by {far}")
        if rank() == 0:
            one.save_pretrained(folder / name / "one")
            model.save_pretrained(folder / name / "two")
        meet()
        first, second = (folder / name / which / WEIGHTS_NAME for which in ("one", "two"))
        here, there = load_file(second), load_file(first)
        if here.keys() != there.keys() or any(off(here[k], there[k]) for k in here):
            out.append("its file has other tensors")
        if notes(first)["base"] != notes(second)["base"]:
            out.append("its file says that it has another base")
        base = case.shape.build(0, WIDTH)
        base = partitioned(base) if stage == 3 else base
        again = case.loaded(second.parent, experts, base, is_trainable=True).eval()
        other = engine(again, stage)
        if far := off(case.logits(again), wanted):
            out.append(f"loaded onto a base in parts its outputs differ by {far}")
        if case.method not in DRAWS | MIXES:
            losses, state = steps(case, again, other, slice(rank(), rank() + 1))
            again.save_pretrained(folder / name / "trained")
            meet()
            if any(off(t, state[n]) for n, t in load_file(folder / name / "trained" / WEIGHTS_NAME).items()):
                out.append("after training its file has other tensors")
        made.destroy()
        other.destroy()
        if stage == 3:
            model = begun_on(partitioned(case.shape.build(0, WIDTH)), case, experts)
            made = engine(model, stage)
            if far := off(case.logits(model), wanted):
                out.append(f"begun on a base in parts its outputs differ by {far}")
            made.destroy()
    if case.method in DRAWS | MIXES:
        return out
    return out + trained_otherwise(case, one, losses, state)


def found(
    method: str, shape: str, option: str, options: dict[str, Any], stage: int, folder: str, experts: str
) -> list[str]:
    """Of a case, what is wrong."""
    import traceback

    case = Case(method, whole.SHAPES[shape], option, options)
    try:
        return problems(case, stage, Path(folder), Path(experts))
    except Exception as error:
        return [f"{type(error).__name__}: {error} {traceback.format_exc()[-3000:]}"]
