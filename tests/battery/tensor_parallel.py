"""What every registered method does in one of two processes beside a base that is tensor-parallel over both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import afina
from afina.core.disk.checkpoint import WEIGHTS_NAME
from afina.core.layers.sharded import is_sharded

from . import whole
from .spread import DRAWS, meet, notes, off, trained
from .whole import IDS, WIDTH, Case


def cut(folder: Path) -> Any:
    """The tests' decoder as transformers loads it tensor-parallel."""
    import transformers
    from transformers.distributed import DistributedConfig

    file = folder / "base"
    if not file.exists() and torch.distributed.get_rank() == 0:
        whole.SHAPES["decoder"].build(0, WIDTH).save_pretrained(file)
    meet_all()
    split = DistributedConfig(tp_size=2, tp_plan="auto")
    model = transformers.AutoModelForCausalLM.from_pretrained(file, distributed_config=split)
    assert is_sharded(model.model.layers[0].mlp.up_proj.weight)
    return model.eval()


def meet_all() -> None:
    """Wait for the other process."""
    torch.distributed.barrier()


def adapted(case: Case, folder: Path, experts: Path) -> Any:
    torch.manual_seed(torch.distributed.get_rank())  # what is drawn must become equal all the same
    config = case.config()
    if case.routes:
        config.adapters = dict(whole.experts(case.shape, experts))
        config.__post_init__()
    return afina.get_peft_model(cut(folder), config)


def problems(case: Case, folder: Path, experts: Path) -> list[str]:
    """What is otherwise than in one process."""
    one, out, name = case.adapted(experts), list[str](), f"{case.method.lower()}-{case.option}"
    wanted, plain = case.logits(one), case.logits(case.shape.build(0, WIDTH))
    model = adapted(case, folder, experts)
    afina.set_peft_model_state_dict(model, afina.get_peft_model_state_dict(one))
    model.eval()
    if far := off(case.logits(model), wanted):
        out.append(f"its outputs differ by {far}")
    with model.disable_adapter():
        if far := off(case.logits(model), plain):
            out.append(f"switched off its outputs differ by {far}")
    if case.method not in whole.WITH_TASKS:
        said = [m.generate(input_ids=IDS[:1, :4], max_new_tokens=3, do_sample=False) for m in (one, model)]
        if not torch.equal(*said):
            out.append("it says something else")
    if torch.distributed.get_rank() == 0:
        one.save_pretrained(folder / name / "one")
    model.save_pretrained(folder / name / "two", is_main_process=torch.distributed.get_rank() == 0)
    meet_all()
    first, second = (folder / name / which / WEIGHTS_NAME for which in ("one", "two"))
    here, there = load_file(second), load_file(first)
    if here.keys() != there.keys() or any(off(here[k], there[k]) for k in here):
        out.append("its file has other tensors")
    if notes(first)["base"] != notes(second)["base"]:
        out.append("its file says that it has another base")
    again = case.loaded(second.parent, experts, cut(folder), is_trainable=True).eval()
    if far := off(case.logits(again), wanted):
        out.append(f"loaded onto a cut base its outputs differ by {far}")
    if case.method in DRAWS:
        return out
    return out + differences(case, one, again)


def differences(case: Case, one: Any, model: Any) -> list[str]:
    out = []
    losses, state = trained(case, model, slice(None))
    before = {n: t.clone() for n, t in afina.get_peft_model_state_dict(one).items()}
    alone, expected = trained(case, one, slice(None))
    if all(torch.equal(before[n], t) for n, t in expected.items()):
        out.append("it does not train")
    if any(abs(a - b) > 1e-4 * abs(b) for a, b in zip(losses, alone, strict=True)):
        out.append(f"its losses are {losses} and not {alone}")
    far = max(float((state[n] - t).float().norm()) for n, t in expected.items())
    far /= max(float(t.float().norm()) for t in expected.values())
    if far > 1e-3:
        out.append(f"after training its tensors differ by {far:.2g}")
    return out
