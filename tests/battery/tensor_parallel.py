"""What every registered method does in one of two processes beside a base that is tensor-parallel over both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import afina
from afina.core.disk.checkpoint import WEIGHTS_NAME
from afina.core.layers.sharded import is_sharded
from afina.core.layers.tensor_parallel import CutLinear
from afina.devices.ranks import meet, rank

from . import whole
from .spread import DRAWS, notes, off, trained, trained_otherwise, two
from .whole import IDS, WIDTH, Case

# What an adapter holds in parts on a layer that is cut by columns, and on one that is cut by rows.
CUT = {
    "LORA": ({"lora_B", "lora_bias", "lora_magnitude_vector"}, {"lora_A", "lora_A0"}),
    "IA3": ({"ia3_l"}, {"ia3_l"}),
    "BITFIT": ({"bias"}, set[str]()),
}


def made_case(method: str, options: dict[str, Any]) -> Case:
    shape = whole.SHAPES["decoder"]
    return Case(method, shape, "-".join(map(str, options)) or "plain", options)


def cut(folder: Path) -> Any:
    """The tests' decoder as transformers loads it tensor-parallel."""
    import transformers
    from transformers.distributed import DistributedConfig

    split = DistributedConfig(tp_size=2, tp_plan="auto")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", distributed_config=split)
    assert is_sharded(model.model.layers[0].self_attn.o_proj.weight)
    return model.eval()


def adapted(case: Case, folder: Path, experts: Path) -> Any:
    """The method's adapter on a cut base; every process draws other numbers first."""
    torch.manual_seed(rank())
    config = case.config()
    if case.routes:
        config.adapters = dict(whole.experts(case.shape, experts))
        config.__post_init__()
    return afina.get_peft_model(cut(folder), config)


def laid_out(method: str, model: Any) -> list[str]:
    """What of the adapter does not lie as its layers do."""
    out = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        by_columns, by_rows = CUT.get(method, (set(), set()))
        path, _, leaf = name.rpartition(".")
        base = model.get_submodule(path.partition(".adapters")[0]).base
        along = isinstance(base, CutLinear) and base.cut.follows
        shards = is_sharded(parameter) and parameter.placements[0].is_shard()
        if shards != (along and leaf in (by_columns if base.cut.outputs else by_rows)):
            out.append(f"{name} lies as {parameter.placements if is_sharded(parameter) else 'a whole'}")
        if not shards and not alike(parameter):
            out.append(f"{name} differs between the processes")
    return out


def alike(tensor: Any) -> bool:
    """Whether all processes have the same."""
    own = tensor.detach().to_local() if is_sharded(tensor) else tensor.detach()
    first = own.clone()
    torch.distributed.broadcast(first, 0)
    return torch.equal(first, own)


def problems(case: Case, folder: Path, experts: Path) -> list[str]:
    """What is otherwise than in one process."""
    one, out, name = case.adapted(experts), list[str](), f"{case.method.lower()}-{case.option}"
    wanted, plain = case.logits(one), case.logits(case.shape.build(0, WIDTH))
    model = adapted(case, folder, experts)
    if case.method in CUT and set(case.options) <= {"use_dora", "target_modules"}:
        out += laid_out(case.method, model)
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
    if rank() == 0:
        one.save_pretrained(folder / name / "one")
    model.save_pretrained(folder / name / "two", is_main_process=rank() == 0)
    meet()
    first, second = (folder / name / which / WEIGHTS_NAME for which in ("one", "two"))
    here, there = load_file(second), load_file(first)
    if here.keys() != there.keys() or any(off(here[k], there[k]) for k in here):
        out.append("its file has other tensors")
    if notes(first)["base"] != notes(second)["base"] or "weights" not in notes(first)["base"]:
        out.append("its file says that it has another base")
    again = case.loaded(second.parent, experts, cut(folder), is_trainable=True).eval()
    if far := off(case.logits(again), wanted):
        out.append(f"loaded onto a cut base its outputs differ by {far}")
    return out if case.method in DRAWS else out + steps(case, one, again)


def steps(case: Case, one: Any, model: Any) -> list[str]:
    """What of training on the same rows in both processes is otherwise than in one."""
    losses, state = trained(case, model, slice(None))
    out = trained_otherwise(case, one, losses, state)
    wholes = {n: p for n, p in model.named_parameters() if not is_sharded(p) or p.placements[0].is_replicate()}
    if unlike := [n for n, same in {n: alike(p) for n, p in wholes.items()}.items() if not same]:
        out.append(f"the processes have other numbers of {', '.join(unlike[:3])}")
    return out


def found(method: str, options: dict[str, Any], folder: str, experts: str) -> list[str]:
    """What is wrong with a method."""
    import traceback

    try:
        with two():
            return problems(made_case(method, options), Path(folder), Path(experts))
    except Exception as error:
        return [f"{type(error).__name__}: {error} {traceback.format_exc()[-3000:]}"]
